"""Curves plots all scalars of a run, and Scalars keeps them across resumptions."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from monitored_runs import LIGHTNING_NOISE, config, module_of, run
from PIL import Image
from training_runs import make_videos

from vidtok_plugin.training.curves import Curves, draw_curves, panel_of, smoothed
from vidtok_plugin.training.scalars import MAX_POINTS, Scalars, Series


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@LIGHTNING_NOISE
def test_curves_continue_after_a_resumption(folder: Path, tmp_path: Path) -> None:
    """Points logged after the last checkpoint are dropped and logged again."""
    plain = ["objective={perceptual: none, discriminator: none}", "checkpoint_every=4", "loggers=[]"]

    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                raise RuntimeError("power failure")

    first, second = Curves(tmp_path / "curves.png"), Curves(tmp_path / "curves.png")
    cfg = config(folder, tmp_path, *plain, "trainer.max_steps=10")
    with pytest.raises(RuntimeError, match="power failure"):
        run(cfg, module_of(cfg), Stop(), first)
    assert first.scalars.series["train/loss"].steps == [2, 4, 6]
    assert not first.path.exists()
    run(cfg, module_of(cfg), second)
    loss = second.scalars.series["train/loss"]
    assert loss.steps == [2, 4, 6, 8, 10] and second.scalars.series["val/psnr"].steps == [4, 8]
    assert loss.values[:3] == first.scalars.series["train/loss"].values
    assert second.path.is_file()


def test_a_series_has_at_most_max_points_evenly_spaced() -> None:
    series = Series()
    for step in range(5 * MAX_POINTS):
        series.add(step, float(step))
    assert len(series.steps) <= MAX_POINTS
    assert set(np.diff(series.steps)) == {series.stride} == {8}
    assert series.values == [float(step) for step in series.steps]


def test_a_truncated_line_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scalars = Scalars(tmp_path / "curves.jsonl")
    scalars.add(1, {"train/loss": 2.0, "train/grad_norm": float("nan")})
    scalars.add(2, {"train/loss": 3.0})
    with scalars.path.open("a") as file:
        file.write('{"step": 3, "tr')
    again = Scalars(scalars.path)
    again.resume(3)
    assert "skipped a damaged line" in caplog.text
    again.add(3, {"train/loss": 4.0})
    again.resume(3)
    assert again.series["train/loss"].steps == [1, 2, 3] and len(again.series["train/grad_norm"].values) == 1
    again.resume(0)  # a new run in the same folder
    assert again.series == {} and scalars.path.read_text() == ""


def test_curves_accept_nan_and_infinite_values(tmp_path: Path) -> None:
    steps = list(range(60))
    values = [1.0] * 30 + [float("nan"), float("inf")] + [1.0] * 28
    series = {name: Series(steps=steps, values=values, seen=60) for name in ("train/loss", "train/grad_norm")}
    series["val/loss"] = Series(steps=[59], values=[0.0], seen=1)
    draw_curves(tmp_path / "new" / "curves.png", series)
    assert pixels(tmp_path / "new" / "curves.png").shape[1] > 500
    assert smoothed(values) == pytest.approx(np.ones(60))


def test_every_scalar_has_a_panel() -> None:
    assert panel_of("train/grad_norm_discriminator") == panel_of("train/grad_norm") == "grad_norm"
    assert panel_of("val/cross_entropy") == panel_of("train/cross_entropy") == "cross_entropy"
    assert panel_of("train/lpips") == "lpips" and panel_of("train/anything") == "anything"
