"""The switch to the networks' plain definition, without the optimizations for CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON = ContextVar("reference_path", default=False)


@contextmanager
def reference_path() -> Iterator[None]:
    """Networks inside this context run their plain definition: each layer's `forward` and `step` as written.

    Results equal those of the fast path up to rounding. The plain path is slower and takes more memory on a CPU; it is
    the one to read, to debug and to compare with. The switch applies to the current thread or task.

    Example:
        >>> import torch
        >>> from vidtok_plugin import VidTok
        >>> tokenizer, video = VidTok.from_pretrained("vidtok_tiny"), torch.zeros(1, 3, 5, 16, 16)
        >>> with torch.no_grad(), reference_path():
        ...     plain = tokenizer.encode(video).latents
        >>> torch.allclose(plain, tokenizer.encode(video).latents, atol=1e-4)
        True
    """
    token = _ON.set(True)
    try:
        yield
    finally:
        _ON.reset(token)


def on_reference_path() -> bool:
    """Whether `reference_path` is active."""
    return _ON.get()
