"""ReconstructionPictures: the same validation clips and their reconstructions throughout training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.training.trackers import log_picture
from vidtok_plugin.video.batch import as_video
from vidtok_plugin.video.pixels import to_uint8

FRAMES = 6  # shown per clip, evenly spaced from first to last
MIN_HEIGHT = 96  # pixels of a frame in the picture; smaller frames are enlarged by an integer factor
GAP = 4  # pixels
LINE = 18  # pixels of a line of text
BACKGROUND, TEXT = (24, 24, 24), (235, 235, 235)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Some frames of a clip and of its reconstruction."""

    real: np.ndarray  # uint8 (n, h, w, 3)
    made: np.ndarray  # uint8 (n, h, w, 3)
    frames: list[int]  # their indices in the clip
    psnr: float  # dB, of the whole clip


class ReconstructionPictures(pl.Callback):
    """Saves a picture of `clips` validation clips, each above its reconstruction, after each validation.

    The clips are evenly spaced over the validation clips of the first process, so they are the same each time. The
    reconstructions are those of the validation itself, with averaged weights if the run has them. Files are named
    `reconstruction-BATCHES.png`; loggers that show pictures get the same as `reconstruction`. The module's
    `validation_step` must return the reconstruction, as TokenizerModule's does.
    """

    def __init__(self, folder: Path, clips: int = 4) -> None:
        self.folder, self.clips = folder, clips
        self.pairs: list[Pair] = []

    def on_validation_start(self, *_: Any) -> None:
        self.pairs = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
        dataloader_index: int = 0,
    ) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or dataloader_index > 0:
            return
        video = as_video(batch)
        if not isinstance(outputs, Tensor) or outputs.shape != video.shape:
            raise TypeError("ReconstructionPictures: validation_step must return the reconstruction (b, 3, t, h, w).")
        if batch_index == 0:
            batches = trainer.num_val_batches[0]
            # The first ones, for a loader without a length.
            self.chosen = (
                evenly_spaced(int(batches) * len(video), self.clips)
                if batches != float("inf")
                else list(range(self.clips))
            )
            self.seen = 0
        last = self.seen + len(video) - 1
        # If the last batch is smaller than the others, its last clip stands for those that it lacks.
        end = last if batch_index + 1 < trainer.num_val_batches[0] else max(last, *self.chosen)
        for clip in sorted({min(clip, last) for clip in self.chosen if self.seen <= clip <= end}):
            self.pairs.append(pair_of(video[clip - self.seen], outputs[clip - self.seen]))
        self.seen = last + 1

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.pairs or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = trainer.global_step
        sheet = contact_sheet(self.pairs, f"after {step} batches")
        with atomic_write(self.folder / f"reconstruction-{step:08d}.png") as partial:
            sheet.save(partial, format="png")
        log_picture(trainer.loggers, "reconstruction", np.asarray(sheet), step)
        self.pairs = []


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` distinct indices below `total`, each in the middle of its interval.

    Example:
        >>> evenly_spaced(100, 4), evenly_spaced(2, 4)
        ([12, 37, 62, 87], [0, 1])
    """
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def pair_of(real: Tensor, made: Tensor) -> Pair:
    """The frames to show of a clip and its reconstruction, (3, t, h, w) in [-1, 1]."""
    indices = sorted(set(np.linspace(0, real.shape[1] - 1, FRAMES).round().astype(int).tolist()))
    real, made = real.float(), made.float()
    psnr = frame_psnr(real[None], made[None]).mean().item()
    return Pair(real=to_uint8(real[:, indices]), made=to_uint8(made[:, indices]), frames=indices, psnr=psnr)


def contact_sheet(pairs: Sequence[Pair], title: str) -> Image.Image:
    """One image of all pairs: for each, a row of frames above the row of their reconstructions."""
    count, height, width, _ = pairs[0].real.shape
    scale = max(1, round(MIN_HEIGHT / height))
    cell_height, cell_width = scale * height, scale * width
    font = ImageFont.load_default(size=13)
    side = max(int(font.getlength(text)) for text in ("reconstruction", "00.00 dB PSNR")) + 3 * GAP
    block = 2 * (cell_height + GAP) + 2 * GAP
    sheet = Image.new("RGB", (side + count * (cell_width + GAP), 2 * LINE + GAP + block * len(pairs) - GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 2), title, TEXT, font)
    for column, index in enumerate(pairs[0].frames):
        draw.text((side + column * (cell_width + GAP), LINE), f"frame {index + 1}", TEXT, font)
    for row, pair in enumerate(pairs):
        top = 2 * LINE + GAP + row * block
        for line, (name, frames) in enumerate((("original", pair.real), ("reconstruction", pair.made))):
            y = top + line * (cell_height + GAP)
            draw.text((GAP, y), name, TEXT, font)
            for column, frame in enumerate(frames):
                image = Image.fromarray(frame).resize((cell_width, cell_height), Image.Resampling.NEAREST)
                sheet.paste(image, (side + column * (cell_width + GAP), y))
        draw.text((GAP, top + cell_height + GAP + LINE), f"{pair.psnr:.2f} dB PSNR", TEXT, font)
    return sheet
