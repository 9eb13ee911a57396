"""The switch to the plain definition of the networks, in place of what only makes them fast on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON = ContextVar("reference_path", default=False)


@contextmanager
def reference_path() -> Iterator[None]:
    """Inside, networks run their plain definition: each layer's `forward` and `step` as they are written.

    Results agree with the fast path's within rounding. The plain path takes more time and memory on a CPU, and is the
    one to read, to debug, and to compare with. It holds for the current thread or task.

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
    """Whether `reference_path` is on here."""
    return _ON.get()
