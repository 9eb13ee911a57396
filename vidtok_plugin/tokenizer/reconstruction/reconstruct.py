"""Reconstructing a video file of any length as a stream, a few frames in memory at a time."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vidtok_plugin.metrics.frames import bounded_psnr
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.reconstruction.memory import Plan, make_plan
from vidtok_plugin.tokenizer.reconstruction.tile_streams import TiledReconstruction
from vidtok_plugin.tokenizer.video_checks import check_multiple
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.reading import VideoInfo, probe, read_in_order
from vidtok_plugin.video.writing import VideoWriter

logger = logging.getLogger(__name__)

Fit = Literal["pad", "crop"]
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class ReconstructedVideo:
    """What became of a video."""

    num_frames: int
    psnr: float  # in dB, mean of the frames', each at most 80
    num_tiles: int
    tile_height: int
    tile_width: int
    seam: float | None  # by how much neighbouring tiles differ where they overlap, in levels of 0-255; see `tiling`


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a video's frames that is reconstructed, and the size that it is filled up to at right and bottom."""

    rows: slice
    columns: slice
    height: int
    width: int

    def cut_out(self, frames: np.ndarray) -> np.ndarray:
        """Of frames (t, h, w, 3), the part."""
        return frames[:, self.rows, self.columns]

    def fill_up(self, frames: np.ndarray) -> np.ndarray:
        """The part (t, h, w, 3) with copies of its last row and column."""
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
    progress: bool = False,
) -> ReconstructedVideo:
    """Writes `source` as `tokenizer` reconstructs it, with as many frames at the same rate.

    A causal model runs as one stream over the whole file, another on clips of 32 frames.

    fit: what becomes of frames whose height or width is no multiple of the spatial factor: "pad" fills them up with
        copies of their last row and column, and cuts that off again; "crop" cuts their middle out.
    side_by_side: write the original to the left of its reconstruction.
    memory: GB (10^9 bytes) that may be taken, beside the model itself. Frames too large for it are reconstructed in
        tiles that overlap (see `tiling`); what the tiles' streams remember waits in a temporary folder beside `output`
        if it doesn't fit either. Whole frames by default, however much that takes.

    Raises:
        FileNotFoundError: there is no such video.
        ValueError: it can't be read to its end, its size doesn't fit, or there is too little memory.

    Example:
        >>> tokenizer = VidTok.from_pretrained("vidtok_tiny")   # doctest: +SKIP
        >>> reconstruct_video(tokenizer, "film.mp4", "out.mp4", fit="crop", memory=2.0).psnr   # doctest: +SKIP
    """
    if tokenizer.training:
        raise ValueError("reconstruct_video: the tokenizer must be in eval mode; call its eval() first.")
    source, output = Path(source), Path(output)
    info = probe(source)
    if output.exists() and output.samefile(source):
        raise ValueError(f"reconstruct_video: the output must be another file than the video, got {output} for both.")
    window = _window(info, tokenizer.spatial_factor, fit)
    budget = None if memory is None else memory * GB
    plan = make_plan(tokenizer, window.height, window.width, budget=budget, pictures=2 if side_by_side else 1)
    tiling, waiting, psnr = plan.tiling, deque[np.ndarray](), list[float]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), disable=not progress) as bar,
        VideoWriter(output, fps=info.fps) as writer,
        _folder_for_states(plan, output) as folder,
        _memory_in_the_error(info, memory),
    ):
        task = bar.add_task(f"frames of {source.name}", total=info.num_frames)
        tiled = TiledReconstruction(tokenizer, tiling, folder=folder)

        def emit(frames: Tensor) -> None:
            """Writes the frames (1, 3, t, h, w), but for those beyond the video's end."""
            for frame in frames.float().cpu().unbind(2)[: len(waiting)]:
                original = waiting.popleft()
                height, width, _ = original.shape
                frame = frame[..., :height, :width]
                psnr.append(_psnr(original, frame))
                pixels = to_uint8(frame.transpose(0, 1))[0]
                writer.write(np.concatenate([original, pixels], axis=1) if side_by_side else pixels)
                bar.advance(task)

        for block in read_in_order(source, plan.frames):
            part = window.cut_out(block)
            waiting.extend(part)
            emit(tiled.push(rearrange(torch.from_numpy(window.fill_up(part)), "t h w c -> 1 c t h w")))
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
    """The frames' part and its filled-up size, both sides multiples of `factor`."""
    if fit not in (None, "pad", "crop"):
        raise ValueError(f"reconstruct_video: fit must be 'pad' or 'crop', got {fit!r}.")
    sizes = {"height": info.height, "width": info.width}
    if fit is None or (fit == "crop" and min(sizes.values()) < factor):
        for name, size in sizes.items():
            try:
                check_multiple(size, factor, who=str(info.path), name=name, of="the tokenizer's spatial factor")
            except ValueError as error:
                crop = "" if size < factor else ", or fit='crop' (--fit crop) to cut out their middle"
                raise ValueError(
                    f"{error} Pass fit='pad' (--fit pad) to fill the frames up for the tokenizer alone{crop}."
                ) from None
    below = {name: size // factor * factor if fit == "crop" else size for name, size in sizes.items()}
    top, left = (info.height - below["height"]) // 2, (info.width - below["width"]) // 2
    return Window(
        rows=slice(top, top + below["height"]),
        columns=slice(left, left + below["width"]),
        height=-(-below["height"] // factor) * factor,
        width=-(-below["width"] // factor) * factor,
    )


def _psnr(original: np.ndarray, frame: Tensor) -> float:
    """original: uint8 (h, w, 3); frame: (1, 3, h, w) in [-1, 1]."""
    return float(bounded_psnr(from_uint8(torch.from_numpy(original[None, None])), frame.unsqueeze(2)))


@contextmanager
def _folder_for_states(plan: Plan, output: Path) -> Iterator[Path | None]:
    """A temporary folder beside the output, where the plan wants one; None else."""
    if not plan.states_on_disk:
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < plan.states_on_disk:
        raise ValueError(
            f"reconstruct_video: {output.parent} must have {plan.states_on_disk / GB:.1f} GB free for what the tiles' "
            f"streams remember, got {free / GB:.1f} GB; allow more memory, or write to another disk."
        )
    # Not in the system's temporary folder, which may itself be memory.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        logger.info("%.2f GB of the tiles' streams wait in %s", plan.states_on_disk / GB, folder)
        yield Path(folder)


@contextmanager
def _memory_in_the_error(info: VideoInfo, memory: float | None) -> Iterator[None]:
    """Names the remedy where memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f"reconstruct_video: frames of {info.height} x {info.width} don't fit the memory with "
            f"{'no budget' if memory is None else f'a budget of {memory:g} GB'}; pass a smaller one (--memory), "
            "for tiles."
        ) from error
