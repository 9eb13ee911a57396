"""Several processes train as one does, on disjoint samples."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import ROOT, Kind, configure, logged, make_store, make_videos, run_here, settings, start

from vidtok_plugin.training.checkpoints import find_checkpoints
from world_model import WorldModel

pytestmark = [
    pytest.mark.usefixtures("narrow_discriminators"),  # as in distributed_run.py
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
]
SAME = [
    "architecture.dropout=0.0",
    "optimizer.lr=1e-3",  # larger steps amplify rounding differences
    "data.clips_per_epoch=16",
    "trainer.check_val_every_n_epoch=2",
    "checkpoint_every=3",
]
DISC_START = 5
NAMES = ("train/loss", "train/psnr", "train/l1", "train/entropy")
DISCRIMINATOR_NAMES = ("train/loss_discriminator", "train/g_loss", "train/logits_real")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), scale=4)  # reproducible, unlike 16x16


def run_two(kind: Kind, report: Path, arguments: list[str]) -> list[dict[str, Any]]:
    """Trains in two processes, started as Lightning starts them: each runs the script."""
    script = ROOT / "tests" / "distributed_run.py"
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    process = subprocess.run(
        [sys.executable, str(script), kind, str(report), *arguments, *two],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    return json.loads(report.read_text())


def tokenizer_run(videos: Path, output: Path, steps: int, batch_size: int, *overrides: str) -> list[str]:
    own = [f"trainer.max_steps={steps}", f"data.batch_size={batch_size}", f"objective.disc_start={DISC_START}"]
    return settings("tokenizer", videos, output, *SAME, *own, *overrides)


@pytest.fixture(scope="module")
def pair(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run of two processes, each with half of every batch of 4."""
    folder = tmp_path_factory.mktemp("pair")
    batches = run_two("tokenizer", folder / "report.json", tokenizer_run(videos, folder, 9, 2, "keep_checkpoints=9"))
    return folder, batches


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batches(
    videos: Path, tmp_path: Path, pair: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Until the discriminator starts; its batch norm and adaptive weight are per process, as published."""
    run_here("tokenizer", tokenizer_run(videos, tmp_path, DISC_START, 4))
    one, two = logged(tmp_path, NAMES), logged(pair[0], NAMES)
    assert len(one) == DISC_START
    for step, values in one.items():
        assert two[step][:3] == pytest.approx(values[:3], rel=2e-4), step
        # It jumps where a latent passes from one code to the next.
        assert two[step][3] == pytest.approx(values[3], rel=2e-3), step
    assert all(one[step] != one[step + 1] for step in range(DISC_START - 1))
    one, two = logged(tmp_path, ["train/grad_norm"]), logged(pair[0], ["train/grad_norm"])
    # The gradient of the absolute error jumps where the error changes sign.
    assert all(two[step] == pytest.approx(one[step], rel=5e-3) for step in one)


def test_replicas_stay_bit_equal(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, batches = pair
    assert [batch["step"] for batch in batches] == list(range(9)) and all(batch["equal"] for batch in batches)
    assert sorted(logged(folder, DISCRIMINATOR_NAMES)) == list(range(DISC_START, 9))


def test_the_processes_split_an_epoch_without_overlap_or_loss(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    _, batches = pair
    epoch = [origin for batch in batches[:4] for origins in batch["origins"] for origin in origins]
    assert len(epoch) == 16 and all(len(origins) == 2 for batch in batches for origins in batch["origins"])
    again = [origin for batch in batches[4:8] for origins in batch["origins"] for origin in origins]
    # Random clips may coincide by chance, but not in most cases.
    assert len(set(epoch)) > 10 and epoch != again
    for batch in batches:
        assert batch["origins"][0] != batch["origins"][1]


def test_only_one_process_writes_logs_and_checkpoints(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = pair
    assert [path.name for path in (folder / "logs").iterdir()] == ["version_0"]
    saved = sorted(path.stem for path in find_checkpoints(folder / "checkpoints"))
    assert saved == [f"step-{step:08d}" for step in (3, 6, 8, 9)]  # every third, before the validation, and the last
    rows = (folder / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len([row for row in rows if row]) >= 10


@pytest.mark.slow
def test_a_run_resumes_with_the_same_number_of_processes_bit_for_bit(
    videos: Path, tmp_path: Path, pair: tuple[Path, list[dict[str, Any]]]
) -> None:
    """After the start of the discriminator, from the middle of an epoch."""
    folder, batches = pair
    keep_only(folder, tmp_path, 6)
    resumed = run_two("tokenizer", tmp_path / "report.json", tokenizer_run(videos, tmp_path, 9, 2))
    assert [batch["origins"] for batch in resumed] == [batch["origins"] for batch in batches[6:]]
    for names in (NAMES, DISCRIMINATOR_NAMES):
        reference = logged(folder, names)
        assert logged(tmp_path, names) == {step: reference[step] for step in (6, 7, 8)}


def test_a_run_resumes_with_another_number_of_processes(
    videos: Path, tmp_path: Path, pair: tuple[Path, list[dict[str, Any]]]
) -> None:
    """One process with the whole batch takes the samples that two would have taken."""
    folder, _ = pair
    keep_only(folder, tmp_path, 3)
    run_here("tokenizer", tokenizer_run(videos, tmp_path, DISC_START, 4))
    reference, resumed = logged(folder, NAMES), logged(tmp_path, NAMES)
    assert sorted(resumed) == [3, 4]
    for step, values in resumed.items():
        assert values == pytest.approx(reference[step], rel=2e-4)


@pytest.mark.slow
def test_a_nan_loss_in_one_process_is_skipped_in_all(videos: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    batches = run_two("tokenizer", report, tokenizer_run(videos, tmp_path, 4, 2, "non_finite=skip"))
    assert len(batches) == 4 and all(batch["equal"] for batch in batches)
    assert logged(tmp_path, ["train/skipped_steps"]) == {2: (1.0,), 3: (1.0,)}


@pytest.mark.slow
def test_sigterm_to_one_process_saves_a_checkpoint_and_ends_all(videos: Path, tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp", "checkpoint_every=1000"]
    process = start("tokenizer", tokenizer_run(videos, tmp_path, 10_000, 2, *two), tmp_path)
    while not logged(tmp_path):
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)  # the other process holds the pipe as well
    assert process.returncode == 0 and "Traceback" not in printed
    (saved,) = find_checkpoints(tmp_path / "checkpoints")
    assert max(logged(tmp_path)) + 1 == int(saved.stem.removeprefix("step-"))


def keep_only(source: Path, output: Path, step: int) -> None:
    """Makes a run folder whose last checkpoint is that of `step`."""
    name = f"step-{step:08d}.ckpt"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / name).write_bytes((source / "checkpoints" / name).read_bytes())


# World model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_store(tmp_path_factory.mktemp("tokens"))


def world_model_run(store: Path, output: Path, steps: int, batch_size: int, *overrides: str) -> list[str]:
    plain = ["model.corruption=0.0", "model.transformer.dropout=0.0", "checkpoint_every=3", "keep_checkpoints=9"]
    own = [f"trainer.max_steps={steps}", f"data.batch_size={batch_size}", *overrides]
    return settings("world_model", store, output, *plain, *own)


def run_sharded(store: Path, output: Path, steps: int) -> None:
    two = ["sharded=true", "trainer.devices=2"]
    output.mkdir(exist_ok=True)
    process = start("world_model", world_model_run(store, output, steps, 1, *two), output)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed


@pytest.fixture(scope="module")
def sharded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_sharded(store, folder, 6)
    return folder


@pytest.mark.slow
def test_a_sharded_world_model_learns_as_an_unsharded_one(store: Path, tmp_path: Path, sharded: Path) -> None:
    run_here("world_model", world_model_run(store, tmp_path, 6, 2))
    names = ("train/loss", "train/grad_norm")
    unsharded, in_shards = logged(tmp_path, names), logged(sharded, names)
    assert len(unsharded) == 6
    for step, values in unsharded.items():
        assert in_shards[step] == pytest.approx(values, rel=1e-4), step
    ours, theirs = (WorldModel.from_pretrained(folder / "model") for folder in (tmp_path, sharded))
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(weight, ours.get_parameter(name), rtol=1e-3, atol=5e-5)  # Adam on rounding noise


@pytest.mark.slow
def test_a_sharded_run_resumes_unsharded(store: Path, tmp_path: Path, sharded: Path) -> None:
    """Its checkpoints are single files of full weights."""
    keep_only(sharded, tmp_path, 3)
    run_here("world_model", world_model_run(store, tmp_path, 6, 2))
    reference, resumed = logged(sharded), logged(tmp_path)
    assert sorted(resumed) == [3, 4, 5]
    assert all(values == pytest.approx(reference[step], rel=1e-4) for step, values in resumed.items())


@pytest.mark.slow
def test_a_sharded_run_resumes_sharded(store: Path, tmp_path: Path, sharded: Path) -> None:
    keep_only(sharded, tmp_path, 3)
    run_sharded(store, tmp_path, 6)
    reference = logged(sharded)
    assert logged(tmp_path) == {step: reference[step] for step in (3, 4, 5)}


@pytest.mark.slow
def test_two_processes_train_a_world_model_as_one_does(store: Path, tmp_path: Path) -> None:
    run_here("world_model", world_model_run(store, tmp_path / "one", 6, 2))
    report = tmp_path / "report.json"
    batches = run_two("world_model", report, world_model_run(store, tmp_path / "two", 6, 1))
    assert all(batch["equal"] for batch in batches)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one) == 6 and all(two[step] == pytest.approx(one[step], rel=1e-4) for step in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "trainer.devices must be a number of processes with sharded=true, got None"),
        (["trainer.devices=2", "ema_decay=0.9"], "ema_decay must be left out with sharded=true"),
        (["trainer.devices=2", "optimizer.muon_lr=0.01"], "optimizer.muon_lr must be left out with sharded=true"),
        (["trainer.devices=2", "trainer.strategy=ddp"], "trainer.strategy must be left out with sharded=true"),
    ],
)
def test_settings_incompatible_with_sharding_are_refused(
    store: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configure("world_model", world_model_run(store, tmp_path, 1, 2, "sharded=true", *overrides))
