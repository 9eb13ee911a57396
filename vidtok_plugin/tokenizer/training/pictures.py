"""Pictures of how a tokenizer reconstructs the same clips as its training goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.batch import as_video
from vidtok_plugin.video.pixels import to_uint8

FRAMES = 6  # of a clip, evenly spaced from its first to its last
MIN_HEIGHT = 96  # pixels, of a frame in the picture; smaller ones are enlarged by a whole number
GAP = 4
LINE = 18  # pixels of a line of text
BACKGROUND, TEXT = (24, 24, 24), (235, 235, 235)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Frames of a clip and of its reconstruction, uint8 (n, h, w, 3), their places in it, and its PSNR in dB."""

    real: np.ndarray
    made: np.ndarray
    places: list[int]
    psnr: float


class ReconstructionPictures(pl.Callback):
    """After each validation, a picture of `clips` of its clips, each over its reconstruction.

    They are evenly spaced over the validation clips (of the first process), and so the same each time. They are taken
    of what was validated, so with averaged weights where there are some. Files are `FOLDER/reconstruction-BATCHES.png`;
    TensorBoard, where it is a logger, has them as `reconstruction`. It needs a module whose `validation_step` returns
    the reconstruction, as TokenizerModule's does.
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
            # Of a loader without length, the first ones.
            self.places = (
                evenly_spaced(int(batches) * len(video), self.clips)
                if batches != float("inf")
                else list(range(self.clips))
            )
            self.seen = 0
        last = self.seen + len(video) - 1
        # The last batch may be smaller than the others, and its last clip then stands for those it lacks.
        end = last if batch_index + 1 < trainer.num_val_batches[0] else max(last, *self.places)
        for place in sorted({min(place, last) for place in self.places if self.seen <= place <= end}):
            self.pairs.append(pair_of(video[place - self.seen], outputs[place - self.seen]))
        self.seen = last + 1

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.pairs:
            return
        step = trainer.global_step
        sheet = contact_sheet(self.pairs, f"after {step} batches")
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet.save(self.folder / f"reconstruction-{step:08d}.png")
        for log in trainer.loggers:
            if isinstance(log, TensorBoardLogger):
                log.experiment.add_image("reconstruction", np.asarray(sheet), step, dataformats="HWC")
        self.pairs = []


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` different places among `total`, each in the middle of its share.

    Example:
        >>> evenly_spaced(100, 4), evenly_spaced(2, 4)
        ([12, 37, 62, 87], [0, 1])
    """
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def pair_of(real: Tensor, made: Tensor) -> Pair:
    """Of a clip and its reconstruction, (3, t, h, w) in [-1, 1]."""
    places = sorted(set(np.linspace(0, real.shape[1] - 1, FRAMES).round().astype(int).tolist()))

    real, made = real.float(), made.float()
    psnr = frame_psnr(real[None], made[None]).mean().item()
    return Pair(real=to_uint8(real[:, places]), made=to_uint8(made[:, places]), places=places, psnr=psnr)


def contact_sheet(pairs: Sequence[Pair], title: str) -> Image.Image:
    """The pairs one under another: a row of frames, and under it that of their reconstructions."""
    count, height, width, _ = pairs[0].real.shape
    scale = max(1, round(MIN_HEIGHT / height))
    cell_height, cell_width = scale * height, scale * width
    font = ImageFont.load_default(size=13)
    side = max(int(font.getlength(text)) for text in ("reconstruction", "00.00 dB PSNR")) + 3 * GAP
    block = 2 * (cell_height + GAP) + 2 * GAP
    sheet = Image.new("RGB", (side + count * (cell_width + GAP), 2 * LINE + GAP + block * len(pairs) - GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 2), title, TEXT, font)
    for column, place in enumerate(pairs[0].places):
        draw.text((side + column * (cell_width + GAP), LINE), f"frame {place + 1}", TEXT, font)
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
