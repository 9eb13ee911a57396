"""A run that is interrupted, killed, or sent SIGTERM resumes exactly: the same command continues bit for bit."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from training_runs import (
    Kind,
    fit_here,
    logged,
    make_store,
    make_videos,
    run_here,
    settings,
    start,
    wait_for_checkpoint,
)

from vidtok_plugin.training.checkpoints import find_checkpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
]
BEFORE, AFTER = "objective.disc_start=1000", "objective.disc_start=6"
LOSSES = ("train/loss", "train/grad_norm")
DISCRIMINATOR_LOSSES = ("train/loss_discriminator", "train/g_loss")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    torch.manual_seed(0)
    return {
        "tokenizer": make_videos(tmp_path_factory.mktemp("videos")),
        "world_model": make_store(tmp_path_factory.mktemp("tokens")),
    }


def assert_same_losses(resumed: Path, uninterrupted: Path, steps: range, *, discriminator: bool) -> None:
    """Equal bit for bit; and different at every step, so that the comparison means something."""
    for names in (LOSSES, DISCRIMINATOR_LOSSES) if discriminator else (LOSSES,):
        ours, theirs = logged(resumed, names), logged(uninterrupted, names)
        assert [ours[step] for step in steps] == [theirs[step] for step in steps]
        assert len({theirs[step] for step in steps}) == len(steps)


# Interruption


class Interrupt(pl.Callback):
    """Raises an error, or sends SIGTERM, before the batch of this step."""

    def __init__(self, step: int, *, sigterm: bool = False) -> None:
        self.step, self.sigterm = step, sigterm

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if not self.sigterm:
                raise RuntimeError("interrupted")
            os.kill(os.getpid(), signal.SIGTERM)


def short_run(kind: Kind, data: dict[Kind, Path], output: Path) -> list[str]:
    epochs = ["data.clips_per_epoch=12", AFTER] if kind == "tokenizer" else []
    limits = ["trainer.max_steps=12", "checkpoint_every=4", "trainer.check_val_every_n_epoch=2", "ema_decay=0.9"]
    return settings(kind, data[kind], output, *epochs, *limits)


@pytest.mark.parametrize("kind", ["tokenizer", "world_model"])
@pytest.mark.usefixtures("narrow_discriminators")
def test_an_interrupted_run_resumes_with_the_losses_of_an_uninterrupted_one(
    data: dict[Kind, Path], tmp_path: Path, kind: Kind
) -> None:
    """From the middle of an epoch, with averaged weights, a discriminator, dropout, flips and corruption."""
    fit_here(kind, short_run(kind, data, tmp_path / "uninterrupted"))
    with pytest.raises(RuntimeError, match="interrupted"):
        fit_here(kind, short_run(kind, data, tmp_path / "resumed"), Interrupt(6))
    assert find_checkpoints(tmp_path / "resumed" / "checkpoints")[0].name == "step-00000004.ckpt"
    fit_here(kind, short_run(kind, data, tmp_path / "resumed"))
    steps = range(6, 12) if kind == "tokenizer" else range(4, 12)
    assert_same_losses(tmp_path / "resumed", tmp_path / "uninterrupted", steps, discriminator=kind == "tokenizer")


def test_sigterm_saves_a_checkpoint_after_the_batch_and_exits(data: dict[Kind, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        fit_here("world_model", short_run("world_model", data, tmp_path), Interrupt(6, sigterm=True))
    assert not end.value.code
    assert find_checkpoints(tmp_path / "checkpoints")[0].name == "step-00000007.ckpt"
    assert max(logged(tmp_path)) == 6


@pytest.mark.parametrize(("kind", "interval"), [("tokenizer", 6), ("world_model", 4)])
@pytest.mark.usefixtures("narrow_discriminators", "default_signals")
def test_sigterm_in_a_validation_ends_it_and_the_run_resumes_exactly(
    data: dict[Kind, Path], tmp_path: Path, kind: Kind, interval: int
) -> None:
    """It acted after a batch of training, however long the validation took. Inside and at the end of an epoch."""

    class InValidation(pl.Callback):
        batches = 0

        def on_validation_batch_start(self, *_: Any) -> None:
            self.batches += 1
            os.kill(os.getpid(), signal.SIGTERM)

    limits = [f"trainer.val_check_interval={interval}", "trainer.check_val_every_n_epoch=null", "data.batch_size=1"]
    epochs = ["data.clips_per_epoch=6", AFTER] if kind == "tokenizer" else []
    limits += ["trainer.max_steps=12", "checkpoint_every=100", "ema_decay=0.9"]
    fit_here(kind, settings(kind, data[kind], tmp_path / "uninterrupted", *epochs, *limits))
    stopped, overrides = InValidation(), settings(kind, data[kind], tmp_path / "resumed", *epochs, *limits)
    with pytest.raises(SystemExit) as end:
        fit_here(kind, overrides, stopped)
    assert not end.value.code and stopped.batches == 1
    assert find_checkpoints(tmp_path / "resumed" / "checkpoints")[0].name == f"step-{interval:08d}.ckpt"
    fit_here(kind, overrides)
    assert_same_losses(tmp_path / "resumed", tmp_path / "uninterrupted", range(interval, 12), discriminator=False)
    validated = [
        logged(tmp_path / name, [{"tokenizer": "val/psnr", "world_model": "val/cross_entropy"}[kind]])
        for name in ("resumed", "uninterrupted")
    ]
    assert list(validated[1]) == [step - 1 for step in range(interval, 13, interval)]
    assert validated[0] == {step: loss for step, loss in validated[1].items() if step >= interval}


# Killed processes


def combination(kind: Kind, *overrides: str) -> Any:
    return pytest.param(kind, overrides, id="-".join([kind, *(override.split(".")[-1] for override in overrides)]))


def combinations() -> Iterator[Any]:
    for workers in (0, 2):
        for averaged in ("null", "0.9"):
            overrides = (f"data.num_workers={workers}", f"ema_decay={averaged}")
            for disc_start in (BEFORE, AFTER):
                yield combination("tokenizer", *overrides, disc_start)
            yield combination("world_model", *overrides)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "overrides"), list(combinations()))
def test_a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one(
    data: dict[Kind, Path], tmp_path: Path, kind: Kind, overrides: tuple[str, ...]
) -> None:
    """Bit for bit for 20 steps from the middle of an epoch, with dropout, flips and corruption."""
    epochs = ["data.clips_per_epoch=12"] if kind == "tokenizer" else []

    def run(output: Path, steps: int) -> list[str]:
        limits = [f"trainer.max_steps={steps}", "checkpoint_every=4", "trainer.check_val_every_n_epoch=2"]
        return settings(kind, data[kind], output, *epochs, *limits, *overrides)

    resumed, uninterrupted = tmp_path / "resumed", tmp_path / "uninterrupted"
    process = start(kind, run(resumed, 10_000), tmp_path)
    wait_for_checkpoint(resumed, 8, process)
    process.kill()
    process.communicate(timeout=60)  # hangs if loader workers outlive the run, as they did under a fork server
    first = int(find_checkpoints(resumed / "checkpoints")[0].stem.removeprefix("step-"))
    for output in (resumed, uninterrupted):
        run_here(kind, run(output, first + 20))
    assert_same_losses(resumed, uninterrupted, range(first, first + 20), discriminator=AFTER in overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("tokenizer", ["data.num_workers=1", "data.read_timeout=60"]),
        ("tokenizer", []),
        ("world_model", ["data.num_workers=1"]),
    ],
)
def test_sigterm_to_all_processes_saves_a_checkpoint_and_exits_cleanly(
    data: dict[Kind, Path], tmp_path: Path, kind: Kind, workers: list[str]
) -> None:
    """As schedulers send it: loader workers and readers died of it, which stopped the run before it had saved."""
    plain = ["objective.discriminator=none"] if kind == "tokenizer" else []

    def run(output: Path, steps: int) -> list[str]:
        limits = [f"trainer.max_steps={steps}", "checkpoint_every=1000", "trainer.check_val_every_n_epoch=100000"]
        return settings(kind, data[kind], output, *limits, *plain)

    resumed, uninterrupted = tmp_path / "resumed", tmp_path / "uninterrupted"
    process = start(kind, [*run(resumed, 10_000), *workers], tmp_path)
    while not logged(resumed):
        assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in printed and "SIGTERM: saved after" in printed
    (saved,) = find_checkpoints(resumed / "checkpoints")
    step = int(saved.stem.removeprefix("step-"))
    assert max(logged(resumed)) == step - 1
    for output in (resumed, uninterrupted):
        run_here(kind, run(output, step + 3))
    assert logged(resumed) == logged(uninterrupted)
