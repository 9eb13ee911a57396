"""Full float32: the precision of tokens, whatever autocast and PyTorch's settings allow."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vidtok_plugin.common.forks import at_fork
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
    so they also hold for other threads meanwhile; they are restored when the last thread leaves.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_float32(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    _SETTINGS.forbid()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _SETTINGS.allow()


class _ProcessSettings:
    """PyTorch's settings, changed by the first thread that needs full float32 and restored by the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.restore: Callable[[], None] = lambda: None
        # A process must not be forked while a thread that it will not have holds the lock.
        at_fork(before=self.lock.acquire, after_in_parent=self.lock.release, after_in_child=self.lock.release)

    def forbid(self) -> None:
        with self.lock:
            if not self.users:
                self.restore = _saved()
                for put, never in [(put, never) for get, put, never in _OLDER if _readable(get)]:
                    put(never)
                for operation in _OPERATIONS:
                    operation.fp32_precision = "ieee"
            self.users += 1

    def allow(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.restore()


def _saved() -> Callable[[], None]:
    """A call that restores the settings of now."""
    older = [(put, get()) for get, put, _ in _OLDER if _readable(get)]
    precisions = [operation.fp32_precision for operation in _OPERATIONS]

    def restore() -> None:
        for put, value in older:
            put(value)
        for operation, precision in zip(_OPERATIONS, precisions, strict=True):
            operation.fp32_precision = precision

    return restore


def _readable(get: Callable[[], Any]) -> bool:
    """PyTorch refuses to read an older setting that a newer one contradicts; the newer one then applies."""
    try:
        get()
    except RuntimeError:
        return False
    return True


_SETTINGS = _ProcessSettings()


def check_float32(tokenizer: VidTok) -> None:
    """Raise a ValueError if the tokenizer's weights are in half precision."""
    if tokenizer.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"TokenizerAdapter: the tokenizer must be in float32, since ids change in {tokenizer.dtype}; "
            "call tokenizer.float()."
        )
