"""Large tensors a part at a time, where nothing is kept for gradients: the same sums on less memory, and faster.

On a CPU what a layer makes on the way then stays in the cache. It also stays below 32 MiB, from where on glibc takes
new pages from the system for each tensor and gives them back: a SiLU that writes such a tensor runs at a fifth of the
speed.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 2**24  # of the largest tensor that a layer makes of a part, about


def may_overwrite() -> bool:
    """Whether no gradients are kept, so that a network may write into the tensors that it made itself."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else needs."""
    return F.silu(x, inplace=may_overwrite())


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, of which nothing else needs `y`."""
    return y.add_(x) if may_overwrite() and x.dtype == y.dtype else x + y


def chunk_size(x: Tensor, dim: int, *, growth: float = 1.0, multiple: int = 1, overlap: int = 0) -> int:
    """How much of `x` along `dim` a layer takes at once: all of it, but for inference on a CPU.

    growth: the size of the largest tensor that the layer makes, compared with its input.
    multiple: what a part's length is a multiple of, and at least.
    overlap: how much more of `x` a layer sees than is taken.
    """
    length = x.shape[dim]
    if x.device.type != "cpu" or not may_overwrite() or x.numel() == 0:
        return max(1, length)
    fitting = int(CHUNK_BYTES * length // (growth * x.numel() * x.element_size()))
    return length if fitting >= length else max(multiple, (fitting - overlap) // multiple * multiple)


def chunk_ranges(length: int, step: int, *, first: int = 1) -> Iterator[tuple[int, int]]:
    """The starts and ends of the parts of `step`, or less, that make up `length`; the first has at least `first`."""
    starts = [0, *range(max(step, first), length, step)]
    yield from zip(starts, [*starts[1:], length], strict=True)


def cat_into(parts: Iterable[Tensor], dim: int, length: int, into: Tensor | None = None) -> Tensor:
    """The parts, which come one by one, one after the other along `dim`, where they have `length` entries.

    Other than by `torch.cat`, they are never there twice.

    into: where to write them; else a new tensor.
    """
    done = 0
    for part in parts:
        if into is None:
            into = part.new_empty(*part.shape[:dim], length, *part.shape[dim + 1 :])
        into.narrow(dim, done, part.shape[dim]).copy_(part)
        done += part.shape[dim]
        del part  # before the next is made
    assert into is not None and done == length
    return into


def map_frames(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    halo: int | None,
    growth: float = 1.0,
    zoom: float = 1.0,
    overwrite: bool = False,
) -> Tensor:
    """`function(x)` of a function that treats each frame on its own, by as many frames at once as fit.

    halo: how many rows the function sees beyond a row; None: all. Frames that are too large are cut into strips with
        so many rows more at either side.
    zoom: the height of what it makes, compared with its input's.
    overwrite: write the result into `x`, if it is more than one part.
    """
    b, t = x.shape[:2]
    frames = x.reshape(1, b * t, *x.shape[2:])
    step = chunk_size(frames, 1, growth=growth)
    if step >= b * t:
        y = _by_strips(function, frames, halo, growth, zoom)
    else:
        parts = (
            _by_strips(function, frames[:, start:end], halo, growth, zoom) for start, end in chunk_ranges(b * t, step)
        )
        y = cat_into(parts, 1, b * t, into=frames if overwrite else None)
    return y.reshape(b, t, *y.shape[2:])


def _by_strips(function: Callable[[Tensor], Tensor], x: Tensor, halo: int | None, growth: float, zoom: float) -> Tensor:
    if halo is None:
        return function(x)
    h = x.shape[2]
    step = chunk_size(x, 2, growth=growth, multiple=2, overlap=2 * halo)  # even, for what halves the height
    if step >= h:
        return function(x)

    def strip(start: int, end: int) -> Tensor:
        first = max(0, start - halo)
        y = function(x[:, :, first : end + halo])
        top, bottom = int(start * zoom), int(end * zoom)
        return y[:, :, top - int(first * zoom) :][:, :, : bottom - top]

    return cat_into((strip(start, end) for start, end in chunk_ranges(h, step)), 2, int(h * zoom))
