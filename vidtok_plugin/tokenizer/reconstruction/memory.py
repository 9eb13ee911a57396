"""The memory that reconstructing a video takes, and the tiling and the frames per push that a budget allows.

The memory of a push is counted: the tensors alive at its peak, for a small tile, in proportion to the tile's pixels.
That is exact on a GPU. A CPU processes larger tiles in chunks and takes less.
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

CLIP = 32  # frames of a non-causal model's clips, each of which is reconstructed on its own
PUSHED_PIXELS = 2**17  # pixels per push without a budget, about
OVERLAP = 6  # of neighboring tiles, in latents; see `tiling`
SMALL = 2  # latents along each side of the tile that is counted

# Bytes, measured, with some reserve.
FIXED = 64e6  # libraries, once they run
READING = 100  # the video decoder, per pixel of a frame
WRITING = 130  # the video encoder, per pixel written
SCORING = 80  # PSNR and conversion of one frame, per pixel
BLENDING = 40  # originals that wait and frames that are blended, per pixel and frame of a push
MARGIN = 1.6  # factor on the tensors' bytes: workspace of operations, and fragmentation
WAITING = 2.0  # factor on the bytes of waiting states: fragmentation between them


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and are still alive; `peak` is their maximum."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        """before: tensors, such as a model's weights, whose views don't count."""
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
    """Bytes per pixel of a tile."""

    push: float  # at the peak of one push, with the states of its own streams
    state: float  # of the streams' states between pushes; 0 for a non-causal model


@torch.no_grad()
def footprint(tokenizer: VidTok, frames: int, latents: int = SMALL) -> Footprint:
    """The memory of a push of `frames` frames, counted on a tile of `latents` x `latents` latents."""
    side = latents * tokenizer.spatial_factor
    video = torch.zeros(1, 3, frames, side, side, dtype=torch.uint8, device=tokenizer.device)
    with LiveBytes(tokenizer.parameters()) as count:
        if not tokenizer.causal:
            tokenizer(video)
            return Footprint(push=count.peak / side**2, state=0.0)
        encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
        for _ in range(3):  # from the third push on, v1.1 returns as many frames as it gets
            decoder.push(encoder.push(video).latents)
        return Footprint(push=count.peak / side**2, state=count.live / side**2)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a video is reconstructed."""

    tiling: Tiling
    frames: int  # per push
    states_on_disk: int  # bytes of the streams' states, if they wait on disk; 0 if they fit in memory
    memory: float  # bytes, as estimated


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One way to cut frames into tiles."""

    rows: int
    columns: int
    tile_pixels: int

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        """Pixels of all tiles, overlaps included: the work for a frame."""
        return self.tiles * self.tile_pixels


def make_plan(tokenizer: VidTok, height: int, width: int, *, budget: float | None, pictures: int = 1) -> Plan:
    """Whole frames, or, if they need more than `budget` bytes, the tiles within it that are the least work.

    pictures: the number of pictures of `height` x `width` in each written frame.

    Raises:
        ValueError: if the smallest tiles need more than the budget.
    """
    f, s = tokenizer.temporal_factor, tokenizer.spatial_factor
    overlap = OVERLAP * s
    frame_pixels = height * width

    def memory_of(push: float, frames: int) -> float:
        """Of pushes that take `push` bytes, everything else included."""
        return FIXED + frame_pixels * (READING + WRITING * pictures + SCORING + BLENDING * frames) + MARGIN * push

    frames = f * max(1, min(CLIP, PUSHED_PIXELS // frame_pixels) // f) if tokenizer.causal else CLIP
    memory = memory_of(footprint(tokenizer, frames).push * frame_pixels, frames)
    if budget is None or memory <= budget:
        tiling = Tiling(height, width, rows=1, columns=1, overlap=overlap, multiple=s)
        return Plan(tiling=tiling, frames=frames, states_on_disk=0, memory=memory)

    frames = f if tokenizer.causal else CLIP
    bytes_per_pixel = footprint(tokenizer, frames)
    cuts = [
        Cut(
            rows=rows,
            columns=columns,
            tile_pixels=tile_length(height, rows, overlap, s) * tile_length(width, columns, overlap, s),
        )
        for rows, columns in product(_counts(height, overlap, s), _counts(width, overlap, s))
    ]
    needed = {cut: memory_of(bytes_per_pixel.push * cut.tile_pixels, frames) for cut in cuts}
    fitting = [cut for cut in cuts if needed[cut] <= budget]
    if not fitting:
        raise ValueError(
            f"reconstruct_video: memory must be at least {math.ceil(min(needed.values()) / 1e7) / 100} GB for frames "
            f"of {height} x {width} and this tokenizer, got {budget / 1e9:g} GB."
        )
    best = min(fitting, key=lambda cut: (cut.pixels, cut.tiles, cut.rows))
    states = bytes_per_pixel.state * best.pixels
    # The states of the tile that runs are part of its push.
    in_memory = needed[best] + WAITING * states * (1 - 1 / best.tiles)
    on_disk = in_memory > budget
    return Plan(
        tiling=Tiling(height, width, rows=best.rows, columns=best.columns, overlap=overlap, multiple=s),
        frames=frames,
        states_on_disk=math.ceil(states) if on_disk else 0,
        memory=needed[best] if on_disk else in_memory,
    )


def _counts(size: int, overlap: int, multiple: int) -> Iterator[int]:
    """Possible numbers of tiles along an axis. No tile is shorter than two overlaps, unless it is the whole axis."""
    for count in itertools.count(1):
        if count > 1 and tile_length(size, count, overlap, multiple) < 2 * overlap:
            return
        yield count
