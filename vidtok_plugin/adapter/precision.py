"""Full float32: the precision of tokens, whatever autocast and PyTorch's settings allow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vidtok_plugin.tokenizer.model import VidTok

_backends: Any = torch.backends
# Settings that let PyTorch round float32 operands to TF32 (the default of CUDA convolutions) or bfloat16, each with the
# value that forbids it. PyTorch has an older and a newer interface for them, and requires that the two agree.
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
    """Inside, float32 operations keep float32 operands: no autocast on `device`, no TF32, no bfloat16.

    With TF32, ids would differ between devices not only at rounding boundaries. The settings belong to the process,
    so they also hold for other threads meanwhile.

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
            # PyTorch refuses to read an older setting that a newer one contradicts; the newer one then applies.
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


def check_float32(tokenizer: VidTok) -> None:
    """Raise a ValueError if the tokenizer's weights are in half precision."""
    if tokenizer.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"TokenizerAdapter: the tokenizer must be in float32, since ids change in {tokenizer.dtype}; "
            "call tokenizer.float()."
        )
