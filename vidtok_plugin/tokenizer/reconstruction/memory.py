"""How much memory reconstructing a video takes, and the tiling and the push that a budget allows.

What a push takes is counted: every tensor alive at its fullest moment, in a push of a small tile, and in proportion to
the tile's pixels. That is exact on a GPU; a CPU, which works on larger tiles in parts, takes less.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.reconstruction.tiling import Tiling, tile_length

CLIP = 32  # frames of a clip of a non-causal model, which sees no further
PUSHED_PIXELS = 2**17  # about as many are pushed at once where memory doesn't matter
OVERLAP = 6  # of neighbouring tiles, in latents; see `tiling`
SMALL = 2  # latents along the sides of the tile that is counted

# Bytes, as measured with some reserve (see above).
FIXED = 64e6  # what libraries take once they run
READING = 100  # the video decoder's, for each pixel of a frame
WRITING = 130  # the video encoder's, for each pixel written
SCORING = 80  # what becomes of one frame at the end, for each pixel
BLENDING = 40  # originals that wait and frames that are blended, for each pixel and frame of a push
MARGIN = 1.6  # times the tensors' bytes: what operations take inside, and freed memory in pieces too small
WAITING = 2.0  # times the bytes of the states that wait in memory, between which such pieces stay free


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and are still alive; `peak` is the most at a time."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        """Views of the tensors `before`, such as a model's weights, don't count."""
        super().__init__()
        self.live, self.peak = 0, 0
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._before or key in self._storages:
            return
        self._storages[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._storages.pop(key)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes that reconstructing takes for each pixel of a tile."""

    push: float  # at the fullest moment of one push, its own streams' states included
    state: float  # of the streams' states between pushes; 0 for a non-causal model


@torch.no_grad()
def footprint(tokenizer: VidTok, frames: int, latents: int = SMALL) -> Footprint:
    """What a push of `frames` frames takes, counted on a tile of `latents` x `latents` latents."""
    side = latents * tokenizer.spatial_factor
    video = torch.zeros(1, 3, frames, side, side, dtype=torch.uint8, device=tokenizer.device)
    with LiveBytes(tokenizer.parameters()) as count:
        if not tokenizer.causal:
            tokenizer(video)
            return Footprint(push=count.peak / side**2, state=0.0)
        encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
        for _ in range(3):  # from the third push on, v1.1 gives as many frames as it takes
            decoder.push(encoder.push(video).latents)
        return Footprint(push=count.peak / side**2, state=count.live / side**2)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a video is reconstructed."""

    tiling: Tiling
    frames: int  # of a push
    states_on_disk: int  # bytes of the streams' states that wait on the disk; 0 where they fit the memory
    memory: float  # bytes, as estimated


def make_plan(tokenizer: VidTok, height: int, width: int, *, budget: float | None, pictures: int = 1) -> Plan:
    """Whole frames, or, if they take more than `budget` bytes, the tiles within it that are the least work.

    pictures: how many of the size `height` x `width` each frame written is made of.

    Raises:
        ValueError: if the smallest tiles take more than the budget.
    """
    f, s = tokenizer.temporal_factor, tokenizer.spatial_factor
    overlap = OVERLAP * s
    pixels = height * width

    def tiled(rows: int, columns: int) -> Tiling:
        return Tiling(height, width, rows=rows, columns=columns, overlap=overlap, multiple=s)

    def beside(frames: int) -> float:
        """What is taken beside the tile's push."""
        return FIXED + pixels * (READING + WRITING * pictures + SCORING + BLENDING * frames)

    frames = f * max(1, min(CLIP, PUSHED_PIXELS // pixels) // f) if tokenizer.causal else CLIP
    memory = beside(frames) + MARGIN * footprint(tokenizer, frames).push * pixels
    if budget is None or memory <= budget:
        return Plan(tiling=tiled(1, 1), frames=frames, states_on_disk=0, memory=memory)

    frames = f if tokenizer.causal else CLIP
    taken = footprint(tokenizer, frames)
    least, best = math.inf, None
    for rows, columns in product(_counts(height, overlap, s), _counts(width, overlap, s)):
        tile = tile_length(height, rows, overlap, s) * tile_length(width, columns, overlap, s)
        one = beside(frames) + MARGIN * taken.push * tile
        least = min(least, one)
        if one <= budget:
            # Of the states, those of the tile at hand are in `one`.
            states = taken.state * tile * rows * columns
            everything = one + WAITING * states * (1 - 1 / (rows * columns))
            work = (tile * rows * columns, rows * columns)
            ways = (0, everything) if everything <= budget else (math.ceil(states), one)
            plan = (work, rows, columns, *ways)
            best = min(best or plan, plan)
    if best is None:
        raise ValueError(
            f"reconstruct_video: memory must be at least {math.ceil(least / 1e7) / 100} GB for frames of {height} x "
            f"{width} and this tokenizer, got {budget / 1e9:g} GB."
        )
    _, rows, columns, on_disk, memory = best
    return Plan(tiling=tiled(rows, columns), frames=frames, states_on_disk=on_disk, memory=memory)


def _counts(size: int, overlap: int, multiple: int) -> Iterator[int]:
    """Into how many tiles an axis may be cut: none is shorter than two overlaps, unless it's the whole axis."""
    for count in itertools.count(1):
        if count > 1 and tile_length(size, count, overlap, multiple) < 2 * overlap:
            return
        yield count
