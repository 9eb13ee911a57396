"""What a run tells and shows of itself: rates, codebook, reconstructions and curves, in its logs and as PNGs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from places import TESTS
from stores import write_episodes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training_runs import make_videos
from watched_runs import LIGHTNING_NOISE, Metrics, config, module_of, narrow, run

from vidtok_plugin import training
from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.codebook import code_statistics, count_codes
from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsageLog
from vidtok_plugin.tokenizer.training.pictures import ReconstructionPictures, contact_sheet, evenly_spaced, pair_of
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.curves import Curves, draw_curves, panel_of, smoothed
from vidtok_plugin.training.learning_rates import LearningRates
from vidtok_plugin.training.module import Loss, TrainingModule
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from vidtok_plugin.training.scalars import MOST_POINTS, Scalars, Series
from vidtok_plugin.training.throughput import Throughput
from vidtok_plugin.video import VideoDataModule
from world_model import TokenDataModule, WorldModelModule, WorldModelRunConfig

__all__ = ["narrow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# A whole run


SHOWN = {
    *("train/loss", "train/loss_discriminator", "train/psnr", "train/lr", "train/lr_discriminator", "train/data_wait"),
    *("train/clips_per_second", "train/frames_per_second", "train/logits_real", "train/logits_fake"),
    *("train/grad_norm", "train/grad_norm_discriminator", "train/codebook_usage", "train/codebook_perplexity"),
    *("train/codebook_collapsed", "train/discriminator_collapsed", "val/psnr", "val/codebook_usage"),
}


@LIGHTNING_NOISE
def test_a_run_is_seen_in_tensorboard_and_as_png(folder: Path, tmp_path: Path, narrow: None) -> None:
    fit_tokenizer(config(folder, tmp_path, "loggers=[csv, tensorboard]", "trainer.max_steps=8", "ema_decay=0.9"))

    pictures = tmp_path / "pictures"
    assert {path.name for path in pictures.iterdir()} == {
        *("curves.png", "curves.jsonl", "reconstruction-00000004.png", "reconstruction-00000008.png")
    }
    (run_folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(run_folder)).Reload()
    assert set(events.Tags()["scalars"]) >= SHOWN
    (first, second) = events.Images("reconstruction")
    assert (first.step, second.step) == (4, 8)
    (tmp_path / "image.png").write_bytes(second.encoded_image_string)
    ours = pixels(pictures / "reconstruction-00000008.png")
    assert np.array_equal(pixels(tmp_path / "image.png"), ours) and ours.std() > 10
    assert min(pixels(pictures / "curves.png").shape[:2]) > 500
    header = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) >= SHOWN


@LIGHTNING_NOISE
def test_nothing_is_shown_where_that_was_asked_for(folder: Path, tmp_path: Path, narrow: None) -> None:
    fit_tokenizer(config(folder, tmp_path, "curves=false", "pictures=0", "trainer.max_steps=4"))
    assert not (tmp_path / "pictures").exists()


def test_a_number_of_pictures_below_zero_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures must not be negative, got -1; 0 shows none"):
        config(folder, tmp_path, "pictures=-1")


@LIGHTNING_NOISE
def test_a_world_model_has_curves_and_rates(tmp_path: Path) -> None:
    write_episodes(tmp_path / "tokens", "train", [9, 12, 5])
    store = write_episodes(tmp_path / "tokens", "validation", [7, 2])
    cfg = load_config(
        WorldModelRunConfig,
        [],
        [f"data.store={store}", f"output={tmp_path}", "model.max_steps=4", "data.window_steps=4", "loggers=[]"]
        + ["model.transformer={width: 24, depth: 1, heads: 2}", "trainer.accelerator=cpu", "trainer.max_steps=4"]
        + ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=2", "trainer.max_epochs=-1"]
        + ["optimizer.muon_lr=0.02", "optimizer.lr=0.01", "optimizer.warmup_steps=0", "data.batch_size=2"],
    )
    metrics = Metrics()
    training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg), [*training.default_callbacks(cfg), metrics])
    line = metrics.lines[4]
    assert line["train/lr"] == pytest.approx(0.01) and line["train/lr_muon"] == pytest.approx(0.02)
    assert line["train/tokens_per_second"] == pytest.approx(line["train/windows_per_second"] * 4 * 6, rel=1e-4)
    assert (tmp_path / "pictures" / "curves.png").is_file()


@pytest.mark.slow
def test_processes_tell_the_same_of_the_codebook_as_one(folder: Path, tmp_path: Path) -> None:
    """Before disc_start, since the discriminator's statistics are each process's own."""
    lines: list[dict[str, float]] = []
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        output = tmp_path / str(devices)
        overrides = [f"trainer.devices={devices}", f"trainer.strategy={strategy}", f"data.batch_size={4 // devices}"]
        overrides += ["trainer.max_steps=4", "objective={perceptual: none, disc_start: 9}", "optimizer.lr=1e-3"]
        script = TESTS / "watched_runs.py"
        subprocess.run([sys.executable, str(script), str(folder), str(output), *overrides], check=True, timeout=300)
        records = [json.loads(line) for line in (output / "pictures" / "curves.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [2, 4, 4]  # one writer
        assert {path.suffix for path in (output / "pictures").iterdir()} == {".png", ".jsonl"}
        lines.append(records[1])
    one, two = lines
    for name in ("usage", "perplexity"):
        assert two[f"train/codebook_{name}"] == pytest.approx(one[f"train/codebook_{name}"], rel=1e-3)
    assert two["train/frames_per_second"] == pytest.approx(5 * two["train/clips_per_second"], rel=1e-4)
    assert 0 < two["train/data_wait"] < 1


# Learning rates and the codebook


@LIGHTNING_NOISE
def test_the_learning_rate_in_the_log_is_that_of_the_batch(folder: Path, tmp_path: Path, narrow: None) -> None:
    cfg = config(folder, tmp_path, "optimizer.warmup_steps=8", "trainer.max_steps=6", "trainer.limit_val_batches=0")
    metrics = run(cfg, module_of(cfg), LearningRates())
    expected = {step: pytest.approx(0.01 * step / 8) for step in (2, 4, 6)}
    assert metrics.series("train/lr") == expected
    assert metrics.series("train/lr_discriminator") == {step: pytest.approx(3e-3) for step in (2, 4, 6)}


@LIGHTNING_NOISE
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_codebooks_use_is_of_the_last_batches(folder: Path, tmp_path: Path, accumulate: int) -> None:
    """Whole batches, be they split or not, and no validation among them."""
    plain = "objective={perceptual: none, discriminator: none}"
    cfg = config(folder, tmp_path, plain, f"accumulate={accumulate}", "trainer.max_steps=6", "optimizer.lr=1e-12")
    module, seen = module_of(cfg), []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
            with torch.no_grad():
                seen.append(module.tokenizer.encode(batch.video if hasattr(batch, "video") else batch).indices)

    metrics = run(cfg, module, Keep(), CodebookUsageLog(window=3))
    for step in (2, 4, 6):
        counts = count_codes(torch.cat(seen[max(0, step - 3) : step]), 1000)
        for name, value in code_statistics(counts).items():
            assert metrics.lines[step][f"train/{name}"] == pytest.approx(value.item(), rel=1e-4)


def test_the_codebooks_use_asks_for_a_tokenizer() -> None:
    trainer: Any = None
    with pytest.raises(TypeError, match="must have a VidTok as `tokenizer`, got LightningModule"):
        CodebookUsageLog().on_train_start(trainer, pl.LightningModule())


# Throughput


class Slow(TrainingModule):
    """Steps and validation of known duration."""

    def __init__(self, step: float, validation: float) -> None:
        super().__init__(RunConfig(output=Path("unused")))
        self.layer, self.step_seconds, self.validation_seconds = nn.Linear(1, 1), step, validation

    def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
        time.sleep(self.step_seconds)
        yield Loss(name="model", value=self.layer(batch).square().mean())

    def tensors_of(self, batch: Tensor) -> dict[str, Tensor]:
        return {"x": batch}

    def batch_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["x"]

    def origins(self, batch: Tensor) -> list[str]:
        return ["here"] * len(batch)

    def optimizer_configs(self) -> list[OptimizerConfig]:
        return [OptimizerConfig()]

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self.parameters(), OptimizerConfig(), -1)

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        time.sleep(self.validation_seconds)


class SlowData:
    """Items that take their time."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size, self.seconds = size, seconds

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return torch.ones(1)


def timed(module: Slow, data: float, *callbacks: pl.Callback) -> Metrics:
    loader: Any = DataLoader(SlowData(24, data), batch_size=2)  # type: ignore[arg-type]
    validation: Any = DataLoader(SlowData(1, 0.0))  # type: ignore[arg-type]
    metrics = Metrics()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, val_check_interval=2, log_every_n_steps=4, num_sanity_val_steps=0,
        callbacks=[Throughput(window=6), *callbacks, metrics],
    )  # fmt: skip
    profiler = trainer.profiler  # type: ignore[attr-defined]
    try:
        trainer.fit(module, loader, validation)
    finally:
        assert trainer.profiler is profiler  # type: ignore[attr-defined]
    return metrics


@LIGHTNING_NOISE
def test_throughput_counts_the_loader_and_not_validation() -> None:
    """Bounds are wide, since the machine may be busy; with validation, 2 clips would take 225 ms at least."""
    line = timed(Slow(0.005, 0.4), 0.01).lines[12]
    assert 2 / 0.2 < line["train/samples_per_second"] <= 2 / 0.025
    assert line["train/data_wait"] > 0.4


@LIGHTNING_NOISE
def test_a_fast_loader_is_not_waited_for() -> None:
    assert timed(Slow(0.02, 0.0), 0.0).lines[12]["train/data_wait"] < 0.4


@LIGHTNING_NOISE
def test_the_first_batch_is_in_no_throughput() -> None:
    class FirstIsSlow(Slow):
        def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
            time.sleep(1.0 if step == 0 else 0.0)
            yield from super().losses(batch, step)

    line = timed(FirstIsSlow(0.0, 0.0), 0.0).lines[4]  # of three batches then
    assert line["train/samples_per_second"] > 8


@LIGHTNING_NOISE
def test_the_trainers_profiler_is_its_own_again_after_an_error() -> None:
    class Fails(Slow):
        def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        timed(Fails(0.0, 0.0), 0.0)


# Reconstructions


@LIGHTNING_NOISE
def test_pictures_are_of_what_was_validated(folder: Path, tmp_path: Path, narrow: None) -> None:
    """With averaged weights, whose PSNR is another than that of the weights which are trained."""

    class Keep(ReconstructionPictures):
        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            shown.append([pair.psnr for pair in self.pairs])
            validated.append(float(trainer.callback_metrics["val/psnr"]))
            super().on_validation_end(trainer)

    shown: list[list[float]] = []
    validated: list[float] = []
    cfg = config(folder, tmp_path, "trainer.max_steps=8", "ema_decay=0.9")
    run(cfg, module_of(cfg), Keep(tmp_path, clips=9))
    assert len(shown[-1]) == 5  # all there are, in batches of 2, 2 and 1
    assert [np.mean(values) for values in shown[-2:]] == pytest.approx(validated[-2:], rel=1e-4)


@LIGHTNING_NOISE
def test_the_same_clips_are_shown_each_time(folder: Path, tmp_path: Path, narrow: None) -> None:
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
    for frames, place in zip(first, (1, 4), strict=True):  # of 5 clips, in 3 batches of 2
        clip = data.validation_clips[place]
        clip = clip if isinstance(clip, Tensor) else clip.video
        assert np.array_equal(frames, pair_of(clip, clip).real)


def test_a_sheet_shows_each_original_over_its_reconstruction() -> None:
    white, black = torch.ones(3, 17, 16, 24), -torch.ones(3, 17, 16, 24)
    pair = pair_of(white, black)
    assert pair.places == [0, 3, 6, 10, 13, 16] and pair.psnr == pytest.approx(0.0)
    sheet = np.asarray(contact_sheet([pair, pair], "title"))
    column = sheet[:, -10].mean(-1)  # through a frame
    levels = [int(value) for value in column[np.r_[True, np.diff(column) != 0]] if value in (0.0, 255.0)]
    assert levels == [255, 0, 255, 0]
    assert (column == 255).sum() == (column == 0).sum() == 2 * 96  # frames of 16 pixels, enlarged


def test_evenly_spaced_places_are_different_and_within() -> None:
    for total in range(1, 30):
        for count in range(1, 8):
            places = evenly_spaced(total, count)
            assert len(set(places)) == min(total, count) and min(places) >= 0 and max(places) < total


# Curves


@LIGHTNING_NOISE
def test_curves_go_on_over_a_resumption(folder: Path, tmp_path: Path) -> None:
    """What the first run logged after its last checkpoint is lost with it, and comes again."""
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


def test_scalars_stay_few_and_evenly_spaced() -> None:
    series = Series()
    for step in range(5 * MOST_POINTS):
        series.add(step, float(step))
    assert len(series.steps) <= MOST_POINTS
    assert set(np.diff(series.steps)) == {series.stride} == {8}
    assert series.values == [float(step) for step in series.steps]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scalars = Scalars(tmp_path / "curves.jsonl")
    scalars.add(1, {"train/loss": 2.0, "train/grad_norm": float("nan")})
    scalars.add(2, {"train/loss": 3.0})
    with scalars.path.open("a") as file:
        file.write('{"step": 3, "tr')
    again = Scalars(scalars.path)
    again.go_on(3)
    assert "left out a line that is damaged" in caplog.text
    again.add(3, {"train/loss": 4.0})
    again.go_on(3)
    assert again.series["train/loss"].steps == [1, 2, 3] and len(again.series["train/grad_norm"].values) == 1
    again.go_on(0)  # a run from anew in the same folder
    assert again.series == {} and scalars.path.read_text() == ""


def test_curves_take_numbers_that_are_none(tmp_path: Path) -> None:
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
