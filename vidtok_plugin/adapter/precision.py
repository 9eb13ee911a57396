"""Full float32: what tokens are computed in, whatever autocast and the reduced precisions allowed around it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_backends: Any = torch.backends
# What lets PyTorch round float32 operands to TF32 or bfloat16 (on CUDA it does so in convolutions unless told not to),
# each with its value for "never". PyTorch has an older and a newer way to say so, and wants the two to agree.
_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (lambda: _backends.cudnn.allow_tf32, lambda value: setattr(_backends.cudnn, "allow_tf32", value), False),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
)
_OPERATIONS: tuple[Any, ...] = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within it, float32 operations take float32 operands: no autocast on `device`, no TF32, no bfloat16.

    With TF32, ids would differ from device to device at many more places than those at rounding boundaries. These are
    settings of the process, so other threads have them too meanwhile.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_float32(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    before = []
    for get, put, never in _OLDER:
        try:
            before.append((put, get(), never))
        except RuntimeError:
            # PyTorch doesn't tell where the newer way was used against it, which is then the one that counts.
            continue
    precisions = [operation.fp32_precision for operation in _OPERATIONS]
    try:
        for put, _, never in before:
            put(never)
        for operation in _OPERATIONS:
            operation.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for put, value, _ in before:
            put(value)
        for operation, precision in zip(_OPERATIONS, precisions, strict=True):
            operation.fp32_precision = precision
