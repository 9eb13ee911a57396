"""What a run writes: logged scalars, reconstructions and curves, as CSV, TensorBoard events and PNGs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monitored_runs import LIGHTNING_NOISE, Metrics, config
from PIL import Image
from places import TESTS
from stores import write_episodes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import make_videos

from vidtok_plugin import training
from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from world_model import TokenDataModule, WorldModelModule, WorldModelRunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


LOGGED = {
    *("train/loss", "train/loss_discriminator", "train/psnr", "train/lr", "train/lr_discriminator", "train/data_wait"),
    *("train/clips_per_second", "train/frames_per_second", "train/logits_real", "train/logits_fake"),
    *("train/grad_norm", "train/grad_norm_discriminator", "train/codebook_usage", "train/codebook_perplexity"),
    *("train/codebook_collapsed", "train/discriminator_collapsed", "val/psnr", "val/codebook_usage"),
}


@LIGHTNING_NOISE
def test_a_run_writes_tensorboard_events_and_pngs(folder: Path, tmp_path: Path, narrow_discriminators: None) -> None:
    fit_tokenizer(config(folder, tmp_path, "loggers=[csv, tensorboard]", "trainer.max_steps=8", "ema_decay=0.9"))

    pictures = tmp_path / "pictures"
    assert {path.name for path in pictures.iterdir()} == {
        *("curves.png", "curves.jsonl", "reconstruction-00000004.png", "reconstruction-00000008.png")
    }
    (run_folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(run_folder)).Reload()
    assert set(events.Tags()["scalars"]) >= LOGGED
    (first, second) = events.Images("reconstruction")
    assert (first.step, second.step) == (4, 8)
    (tmp_path / "image.png").write_bytes(second.encoded_image_string)
    ours = pixels(pictures / "reconstruction-00000008.png")
    assert np.array_equal(pixels(tmp_path / "image.png"), ours) and ours.std() > 10
    assert min(pixels(pictures / "curves.png").shape[:2]) > 500
    header = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) >= LOGGED


@LIGHTNING_NOISE
def test_curves_and_pictures_can_be_turned_off(folder: Path, tmp_path: Path, narrow_discriminators: None) -> None:
    fit_tokenizer(config(folder, tmp_path, "curves=false", "pictures=0", "trainer.max_steps=4"))
    assert not (tmp_path / "pictures").exists()


def test_a_negative_number_of_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures must not be negative, got -1; 0 shows none"):
        config(folder, tmp_path, "pictures=-1")


@LIGHTNING_NOISE
def test_a_world_model_run_logs_rates_throughput_and_curves(tmp_path: Path) -> None:
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
def test_two_processes_log_the_codebook_usage_of_one(folder: Path, tmp_path: Path) -> None:
    """Before disc_start: the discriminator's statistics are per process."""
    lines: list[dict[str, float]] = []
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        output = tmp_path / str(devices)
        overrides = [f"trainer.devices={devices}", f"trainer.strategy={strategy}", f"data.batch_size={4 // devices}"]
        overrides += ["trainer.max_steps=4", "objective={perceptual: none, disc_start: 9}", "optimizer.lr=1e-3"]
        script = TESTS / "monitored_runs.py"
        subprocess.run([sys.executable, str(script), str(folder), str(output), *overrides], check=True, timeout=300)
        records = [json.loads(line) for line in (output / "pictures" / "curves.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [2, 4, 4]  # one process writes
        assert {path.suffix for path in (output / "pictures").iterdir()} == {".png", ".jsonl"}
        lines.append(records[1])
    one, two = lines
    for name in ("usage", "perplexity"):
        assert two[f"train/codebook_{name}"] == pytest.approx(one[f"train/codebook_{name}"], rel=1e-3)
    assert two["train/frames_per_second"] == pytest.approx(5 * two["train/clips_per_second"], rel=1e-4)
    assert 0 < two["train/data_wait"] < 1
