"""Large tensors a part at a time, where nothing is kept for gradients: the same sums on less memory, and faster.

On a CPU what a layer makes on the way then stays in the cache. It also stays below 32 MiB, from where on glibc takes
new pages from the system for each tensor and gives them back: a SiLU that writes such a tensor runs at a fifth of the
speed.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

PART_BYTES = 2**24  # of the largest tensor that a layer makes of a part, about


def may_overwrite() -> bool:
    """Whether no gradients are kept, so that a network may write into the tensors that it made itself."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else needs."""
    return F.silu(x, inplace=may_overwrite())


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, of which nothing else needs `y`."""
    return y.add_(x) if may_overwrite() and x.dtype == y.dtype else x + y


def length_at_once(x: Tensor, dim: int, *, growth: float = 1.0) -> int:
    """How much of `x` along `dim` a layer takes at once: at least 1, and all of it but for inference on a CPU.

    growth: the size of the largest tensor that the layer makes, compared with its input.
    """
    length = x.shape[dim]
    if x.device.type != "cpu" or not may_overwrite() or x.numel() == 0:
        return max(1, length)
    return max(1, int(PART_BYTES * length // (growth * x.numel() * x.element_size())))


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """The starts and ends of the parts of `step` that make up `length`."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def by_frames(
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
    step = length_at_once(frames, 1, growth=growth)
    if step >= b * t:
        y = _by_strips(function, frames, halo, growth, zoom)
        return y.reshape(b, t, *y.shape[2:])
    out = frames if overwrite else None
    for start, end in spans(b * t, step):
        y = _by_strips(function, frames[:, start:end], halo, growth, zoom)
        if out is None:
            out = y.new_empty(1, b * t, *y.shape[2:])
        out[:, start:end] = y
    assert out is not None
    return out.view(b, t, *out.shape[2:])


def _by_strips(function: Callable[[Tensor], Tensor], x: Tensor, halo: int | None, growth: float, zoom: float) -> Tensor:
    h = x.shape[2]
    step = max(2, length_at_once(x, 2, growth=growth) // 2 * 2)  # even, for what halves the height
    if step >= h or halo is None:
        return function(x)
    out = None
    for start, end in spans(h, step):
        first = max(0, start - halo)
        y = function(x[:, :, first : end + halo])
        if out is None:
            out = y.new_empty(*y.shape[:2], int(h * zoom), *y.shape[3:])
        top, bottom = int(start * zoom), int(end * zoom)
        before = top - int(first * zoom)
        out[:, :, top:bottom] = y[:, :, before : before + bottom - top]
    assert out is not None
    return out
