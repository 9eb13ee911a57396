"""ReconstructionPictures shows the same validation clips above their reconstructions."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from monitored_runs import LIGHTNING_NOISE, config, module_of, run
from torch import Tensor
from training_runs import make_videos

from vidtok_plugin.tokenizer.training.pictures import ReconstructionPictures, contact_sheet, evenly_spaced, pair_of
from vidtok_plugin.video import VideoDataModule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


@LIGHTNING_NOISE
def test_pictures_show_the_validated_reconstructions(folder: Path, tmp_path: Path, narrow_discriminators: None) -> None:
    """With averaged weights, whose PSNR differs from that of the trained weights."""

    class Keep(ReconstructionPictures):
        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            shown.append([pair.psnr for pair in self.pairs])
            validated.append(float(trainer.callback_metrics["val/psnr"]))
            super().on_validation_end(trainer)

    shown: list[list[float]] = []
    validated: list[float] = []
    cfg = config(folder, tmp_path, "trainer.max_steps=8", "ema_decay=0.9")
    run(cfg, module_of(cfg), Keep(tmp_path, clips=9))
    assert len(shown[-1]) == 5  # all clips, in batches of 2, 2 and 1
    assert [np.mean(values) for values in shown[-2:]] == pytest.approx(validated[-2:], rel=1e-4)


@LIGHTNING_NOISE
def test_the_same_clips_are_shown_each_time(folder: Path, tmp_path: Path, narrow_discriminators: None) -> None:
    class Keep(ReconstructionPictures):
        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if not trainer.sanity_checking:
                shown.append([pair.real for pair in self.pairs])

    shown: list[list[np.ndarray]] = []
    cfg = config(folder, tmp_path, "trainer.max_steps=8")
    run(cfg, module_of(cfg), Keep(tmp_path, clips=2))
    first, second = shown
    assert len(first) == 2 and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    data = VideoDataModule(cfg.data)
    data.setup("validate")
    assert data.validation_clips is not None
    for frames, index in zip(first, (1, 4), strict=True):  # of 5 clips, in batches of 2, 2 and 1
        clip = data.validation_clips[index]
        clip = clip if isinstance(clip, Tensor) else clip.video
        assert np.array_equal(frames, pair_of(clip, clip).real)


def test_a_sheet_shows_each_original_above_its_reconstruction() -> None:
    white, black = torch.ones(3, 17, 16, 24), -torch.ones(3, 17, 16, 24)
    pair = pair_of(white, black)
    assert pair.frames == [0, 3, 6, 10, 13, 16] and pair.psnr == pytest.approx(0.0)
    sheet = np.asarray(contact_sheet([pair, pair], "title"))
    column = sheet[:, -10].mean(-1)  # through a frame
    levels = [int(value) for value in column[np.r_[True, np.diff(column) != 0]] if value in (0.0, 255.0)]
    assert levels == [255, 0, 255, 0]
    assert (column == 255).sum() == (column == 0).sum() == 2 * 96  # frames of 16 pixels, enlarged


def test_evenly_spaced_indices_are_distinct_and_in_range() -> None:
    for total in range(1, 30):
        for count in range(1, 8):
            indices = evenly_spaced(total, count)
            assert len(set(indices)) == min(total, count) and min(indices) >= 0 and max(indices) < total
