"""Reconstructs a video file of any length as a stream, with a few frames in memory at a time."""

import logging
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.common.paths import as_path, local_output
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.metrics.frames import bounded_psnr
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.reconstruction.memory import Plan, make_plan
from vidtok_plugin.tokenizer.reconstruction.tile_streams import TiledReconstruction
from vidtok_plugin.tokenizer.video_checks import check_multiple
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.reading import VideoInfo, probe, read_in_order, variable_times
from vidtok_plugin.video.writing import VideoWriter

logger = logging.getLogger(__name__)

Fit = Literal["pad", "crop"]
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class ReconstructedVideo:
    """The result of reconstructing a video."""

    num_frames: int
    psnr: float  # dB, mean over frames, each at most 80
    num_tiles: int
    tile_height: int
    tile_width: int
    seam: float | None  # mean difference of neighboring tiles where they overlap, in levels of 0-255; see `tiling`


@dataclass(frozen=True, kw_only=True)
class Window:
    """The region of a video's frames that is reconstructed, and the size to which it is padded at right and bottom."""

    rows: slice
    columns: slice
    height: int
    width: int

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """The region of frames (t, h, w, 3)."""
        return frames[:, self.rows, self.columns]

    def pad(self, frames: np.ndarray) -> np.ndarray:
        """The region (t, h, w, 3), padded with copies of its last row and column."""
        missing = (self.height - frames.shape[1], self.width - frames.shape[2])
        return np.pad(frames, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def reconstruct_video(
    tokenizer: VidTok,
    source: str | Path,
    output: str | Path,
    *,
    fit: Fit | None = None,
    side_by_side: bool = False,
    memory: float | None = None,
    full_color: bool = False,
    progress: bool = False,
) -> ReconstructedVideo:
    """Writes `source` as `tokenizer` reconstructs it, with the same number of frames at the same times.

    The file is for people to watch (yuv420p): an odd height or width is made even by a copy of the last row or column.

    A causal model runs as one stream over the whole file, a non-causal one on clips of 32 frames.

    fit: how to treat frames whose height or width is not a multiple of the spatial factor: "pad" pads them with copies
        of their last row and column, and crops the result; "crop" reconstructs their center.
    side_by_side: write the original to the left of its reconstruction.
    memory: budget in GB (10^9 bytes), in addition to the model itself. Frames that need more are reconstructed in
        overlapping tiles (see `tiling`). If the states of the tiles' streams don't fit either, they wait in a temporary
        folder next to `output`. By default there is no budget: whole frames.
    full_color: write a file to measure or learn from instead, with the frames' own size and colors at full resolution
        (yuv444p), which many players refuse.

    Raises:
        FileNotFoundError: if there is no such video.
        ValueError: if it can't be read to its end, its size doesn't fit, or there is too little memory.

    Example:
        >>> tokenizer = VidTok.from_pretrained("vidtok_tiny")   # doctest: +SKIP
        >>> reconstruct_video(tokenizer, "film.mp4", "out.mp4", fit="crop", memory=2.0).psnr   # doctest: +SKIP
    """
    if tokenizer.training:
        raise ValueError("reconstruct_video: the tokenizer must be in eval mode; call its eval() first.")
    source, output = as_path(source), local_output(output)
    info = probe(source)
    if output.exists() and output.samefile(source):
        raise ValueError(f"reconstruct_video: the output must be another file than the video, got {output} for both.")
    window = _window(info, tokenizer.spatial_factor, fit)
    budget = None if memory is None else memory * GB
    plan = make_plan(tokenizer, window.height, window.width, budget=budget, pictures=2 if side_by_side else 1)
    times = variable_times(source)
    tiling, waiting, psnr = plan.tiling, deque[np.ndarray](), list[float]()
    with (
        progress_bar(progress) as bar,
        VideoWriter(output, fps=info.fps, playable=not full_color) as writer,
        _folder_for_states(plan, output) as folder,
        _memory_in_the_error(info, memory),
    ):
        task = bar.add_task(f"frames of {source.name}", total=info.num_frames)
        tiled = TiledReconstruction(tokenizer, tiling, folder=folder)

        def emit(frames: Tensor) -> None:
            """Writes the frames (1, 3, t, h, w), except those beyond the video's end."""
            for frame in frames.float().cpu().unbind(2)[: len(waiting)]:
                original = waiting.popleft()
                height, width, _ = original.shape
                frame = frame[..., :height, :width]
                psnr.append(_psnr(original, frame))
                pixels = to_uint8(frame.transpose(0, 1))[0]
                shown = None if times is None else times[len(psnr) - 1 : len(psnr)].tolist()
                writer.write(np.concatenate([original, pixels], axis=1) if side_by_side else pixels, shown)
                bar.advance(task)

        for block in read_in_order(source, plan.frames):
            originals = window.crop(block)
            waiting.extend(originals)
            emit(tiled.push(rearrange(torch.from_numpy(window.pad(originals)), "t h w c -> 1 c t h w")))
        emit(tiled.flush())
    return ReconstructedVideo(
        num_frames=len(psnr),
        psnr=sum(psnr) / len(psnr),
        num_tiles=len(tiling.tiles),
        tile_height=tiling.tile_height,
        tile_width=tiling.tile_width,
        seam=tiled.seam,
    )


def _window(info: VideoInfo, factor: int, fit: Fit | None) -> Window:
    """The region of the frames, and its padded size, whose sides are multiples of `factor`."""
    if fit not in (None, "pad", "crop"):
        raise ValueError(f"reconstruct_video: fit must be 'pad' or 'crop', got {fit!r}.")
    sizes = {"height": info.height, "width": info.width}
    if fit is None or (fit == "crop" and min(sizes.values()) < factor):
        for name, size in sizes.items():
            try:
                check_multiple(size, factor, who=str(info.path), name=name, of="the tokenizer's spatial factor")
            except ValueError as error:
                crop = "" if size < factor else ", or fit='crop' (--fit crop) to reconstruct their center"
                raise ValueError(
                    f"{error} Pass fit='pad' (--fit pad) to pad the frames for the tokenizer only{crop}."
                ) from None
    kept = {name: size // factor * factor if fit == "crop" else size for name, size in sizes.items()}
    top, left = (info.height - kept["height"]) // 2, (info.width - kept["width"]) // 2
    return Window(
        rows=slice(top, top + kept["height"]),
        columns=slice(left, left + kept["width"]),
        height=-(-kept["height"] // factor) * factor,
        width=-(-kept["width"] // factor) * factor,
    )


def _psnr(original: np.ndarray, frame: Tensor) -> float:
    """original: uint8 (h, w, 3); frame: (1, 3, h, w) in [-1, 1]."""
    return float(bounded_psnr(from_uint8(torch.from_numpy(original[None, None])), frame.unsqueeze(2)))


@contextmanager
def _folder_for_states(plan: Plan, output: Path) -> Iterator[Path | None]:
    """A temporary folder next to the output, if the plan keeps states on disk; else None."""
    if not plan.states_on_disk:
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < plan.states_on_disk:
        raise ValueError(
            f"reconstruct_video: {output.parent} must have {plan.states_on_disk / GB:.1f} GB free for the states of "
            f"the tiles' streams, got {free / GB:.1f} GB; allow more memory, or write to another disk."
        )
    # Not in the system's temporary folder, which may itself be memory.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        logger.info("%.2f GB of the states of the tiles' streams are in %s", plan.states_on_disk / GB, folder)
        yield Path(folder)


@contextmanager
def _memory_in_the_error(info: VideoInfo, memory: float | None) -> Iterator[None]:
    """Names the remedy when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f"reconstruct_video: frames of {info.height} x {info.width} don't fit in memory with "
            f"{'no budget' if memory is None else f'a budget of {memory:g} GB'}; pass a smaller budget (--memory) to "
            "reconstruct in tiles."
        ) from error
