"""Chunked inference: bounds peak memory when gradients are off, and is faster on a CPU.

A layer's intermediate tensors then stay in the cache. They also stay below 32 MiB: above that, glibc requests new pages
from the system for each tensor and returns them, so that a SiLU that writes such a tensor runs at a fifth of the speed.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidtok_plugin.tokenizer.network.fast import dispatch

CHUNK_BYTES = 2**24  # approximate size of the largest tensor that a layer computes from a chunk

Step = Callable[[Tensor, Any, bool], tuple[Tensor, Any]]


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else needs."""
    return F.silu(x, inplace=dispatch.inference())


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, where nothing else needs `y`."""
    return y.add_(x) if dispatch.inference() and x.dtype == y.dtype else x + y


def chunk_size(x: Tensor, dim: int, *, growth: float = 1.0, multiple: int = 1, overlap: int = 0) -> int:
    """How much of `x` along `dim` a layer processes at once: all of it, except for inference on a CPU.

    growth: the size of the largest tensor that the layer computes, relative to its input.
    multiple: a chunk's length is a multiple of this, and at least this.
    overlap: how much more of `x` a layer sees than the chunk.
    """
    length = x.shape[dim]
    if not dispatch.on_cpu(x) or not dispatch.inference() or x.numel() == 0:
        return max(1, length)
    fitting = int(CHUNK_BYTES * length // (growth * x.numel() * x.element_size()))
    return length if fitting >= length else max(multiple, (fitting - overlap) // multiple * multiple)


def chunk_ranges(length: int, size: int, *, first: int = 1) -> Iterator[tuple[int, int]]:
    """Starts and ends of the chunks of `length`, each of `size` or less; the first has at least `first`."""
    starts = [0, *range(max(size, first), length, size)]
    yield from zip(starts, [*starts[1:], length], strict=True)


def cat_into(chunks: Iterable[Tensor], dim: int, length: int, into: Tensor | None = None) -> Tensor:
    """Concatenates chunks, made one at a time, along `dim` to `length`; `torch.cat` would hold them twice.

    into: where to write them; by default a new tensor.
    """
    done = 0
    for chunk in chunks:
        if into is None:
            into = chunk.new_empty(*chunk.shape[:dim], length, *chunk.shape[dim + 1 :])
        into.narrow(dim, done, chunk.shape[dim]).copy_(chunk)
        done += chunk.shape[dim]
        del chunk  # before the next is made
    assert into is not None and done == length
    return into


def step_by_chunks(
    step: Step, x: Tensor, state: Any, last: bool, *, size: int, outputs: int, first: int = 1
) -> tuple[Tensor, Any]:
    """`step(x, state, last)` in steps of `size` frames, of which the first has at least `first`.

    outputs: the number of output frames of all steps.
    """
    t, done, y = x.shape[1], 0, None
    for start, end in chunk_ranges(t, size, first=first):
        chunk, state = step(x[:, start:end], state, last and end == t)
        if y is None:
            y = chunk.new_empty(len(x), outputs, *chunk.shape[2:])
        y[:, done : done + chunk.shape[1]] = chunk
        done += chunk.shape[1]
        del chunk  # before the next is made
    assert y is not None and done == outputs
    return y, state


def split_rows(state: dict[str, Tensor] | None, top: int, bottom: int) -> dict[str, Tensor] | None:
    """The rows of a layer's state."""
    return None if state is None else {name: frames[:, :, top:bottom] for name, frames in state.items()}


def join_rows(states: list[Any]) -> dict[str, Tensor] | None:
    """The state of all rows; None if the stream has ended."""
    if states[0] is None:
        return None
    return {name: torch.cat([rows[name] for rows in states], dim=2) for name in states[0]}


def map_frames(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    halo: int | None,
    growth: float = 1.0,
    zoom: float = 1.0,
    overwrite: bool = False,
) -> Tensor:
    """`function(x)`, computed for as many frames at a time as fit; the function processes each frame on its own.

    halo: how many rows the function sees beyond a row; None: all. Frames that are too large are cut into strips that
        overlap by as many rows on each side.
    zoom: the height of its output, relative to its input.
    overwrite: write the result into `x`, if it takes more than one chunk.
    """
    b, t = x.shape[:2]
    frames = x.reshape(1, b * t, *x.shape[2:])
    size = chunk_size(frames, 1, growth=growth)
    if size >= b * t:
        y = _by_strips(function, frames, halo, growth, zoom)
    else:
        chunks = (
            _by_strips(function, frames[:, start:end], halo, growth, zoom) for start, end in chunk_ranges(b * t, size)
        )
        y = cat_into(chunks, 1, b * t, into=frames if overwrite else None)
    return y.reshape(b, t, *y.shape[2:])


def _by_strips(function: Callable[[Tensor], Tensor], x: Tensor, halo: int | None, growth: float, zoom: float) -> Tensor:
    if halo is None:
        return function(x)
    h = x.shape[2]
    size = chunk_size(x, 2, growth=growth, multiple=2, overlap=2 * halo)  # even, for layers that halve the height
    if size >= h:
        return function(x)

    def strip(start: int, end: int) -> Tensor:
        first = max(0, start - halo)
        y = function(x[:, :, first : end + halo])
        top, bottom = int(start * zoom), int(end * zoom)
        return y[:, :, top - int(first * zoom) :][:, :, : bottom - top]

    return cat_into((strip(start, end) for start, end in chunk_ranges(h, size)), 2, int(h * zoom))
