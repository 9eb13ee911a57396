"""Whatever happens to the machine, the same command goes on as if nothing had happened."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    Kind,
    configure,
    logged,
    make_store,
    make_videos,
    run_here,
    settings,
    start,
    wait_for_checkpoint,
)

from vidtok_plugin import training
from vidtok_plugin.training.checkpoints import AtomicCheckpointIO, find_checkpoints, find_damage

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
]
BEFORE, AFTER = "objective.disc_start=1000", "objective.disc_start=6"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    torch.manual_seed(0)
    return {
        "tokenizer": make_videos(tmp_path_factory.mktemp("videos")),
        "world_model": make_store(tmp_path_factory.mktemp("tokens")),
    }


def combination(kind: Kind, *overrides: str, slow: bool = True) -> Any:
    name = "-".join([kind, *(override.split(".")[-1] for override in overrides)])
    return pytest.param(kind, overrides, id=name, marks=[pytest.mark.slow] if slow else [])


def combinations() -> Iterator[Any]:
    """Every pair of kind, workers and averaging is among the quick ones, and both sides of `disc_start`."""
    for workers in (0, 2):
        for averaged in ("null", "0.9"):
            overrides = (f"data.num_workers={workers}", f"ema_decay={averaged}")
            for start_of_discriminator in (BEFORE, AFTER):
                quick = {(0, "null"): BEFORE, (2, "0.9"): AFTER}.get((workers, averaged)) == start_of_discriminator
                yield combination("tokenizer", *overrides, start_of_discriminator, slow=not quick)
            yield combination("world_model", *overrides, slow=(workers, averaged) not in ((0, "0.9"), (2, "null")))


@pytest.mark.parametrize(("kind", "overrides"), list(combinations()))
def test_a_killed_run_goes_on_with_the_losses_of_an_unbroken_one(
    data: dict[Kind, Path], tmp_path: Path, kind: Kind, overrides: tuple[str, ...]
) -> None:
    """Bit for bit for 20 steps, from the middle of an epoch: dropout, flips and corruption included."""
    epochs = ["data.clips_per_epoch=12"] if kind == "tokenizer" else []

    def run(output: Path, steps: int) -> list[str]:
        limits = [f"trainer.max_steps={steps}", "checkpoint_every=4", "trainer.check_val_every_n_epoch=2"]
        return settings(kind, data[kind], output, *epochs, *limits, *overrides)

    process = start(kind, run(tmp_path / "parts", 10_000), tmp_path)
    wait_for_checkpoint(tmp_path / "parts", 8, process)
    process.kill()
    process.communicate(timeout=60)  # the loader's workers end too: under a fork server they stayed forever
    first = int(find_checkpoints(tmp_path / "parts" / "checkpoints")[0].stem.removeprefix("step-"))
    for name in ("parts", "whole"):
        run_here(kind, run(tmp_path / name, first + 20))

    names = ("train/loss", "train/grad_norm")
    whole, parts = (logged(tmp_path / name, names) for name in ("whole", "parts"))
    compared = range(first, first + 20)
    assert [parts[step] for step in compared] == [whole[step] for step in compared]
    assert len({whole[step] for step in compared}) == 20
    if AFTER in overrides:
        names = ("train/loss_discriminator", "train/g_loss")
        whole, parts = (logged(tmp_path / name, names) for name in ("whole", "parts"))
        assert [parts[step] for step in compared] == [whole[step] for step in compared]


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("tokenizer", ["data.num_workers=1", "data.read_timeout=60"]),
        pytest.param("tokenizer", [], marks=pytest.mark.slow),
        pytest.param("world_model", ["data.num_workers=1"], marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_and_ends_cleanly(data: dict[Kind, Path], tmp_path: Path, kind: Kind, workers: list[str]) -> None:
    """As schedulers send it, to all processes of the job: loader workers and their readers died of it, and the run of
    their death, before it had saved."""
    plain = ["objective.discriminator=none"] if kind == "tokenizer" else []

    def run(output: Path, steps: int) -> list[str]:
        limits = [f"trainer.max_steps={steps}", "checkpoint_every=1000", "trainer.check_val_every_n_epoch=100000"]
        return settings(kind, data[kind], output, *limits, *plain)

    process = start(kind, [*run(tmp_path / "parts", 10_000), *workers], tmp_path)
    while not logged(tmp_path / "parts"):
        assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in output and "SIGTERM: saved after" in output
    (saved,) = find_checkpoints(tmp_path / "parts" / "checkpoints")
    step = int(saved.stem.removeprefix("step-"))
    before = logged(tmp_path / "parts")
    assert max(before) == step - 1
    for name in ("parts", "whole"):
        run_here(kind, run(tmp_path / name, step + 3))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


# Checkpoint files


def toy_run(data: dict[Kind, Path], output: Path, steps: int, *overrides: str) -> None:
    limits = [f"trainer.max_steps={steps}", "checkpoint_every=2"]
    run_here("world_model", settings("world_model", data["world_model"], output, *limits, *overrides))


def test_a_truncated_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    data: dict[Kind, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy_run(data, tmp_path / "whole", 8)
    toy_run(data, tmp_path / "parts", 6)
    newest, before = find_checkpoints(tmp_path / "parts" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    with caplog.at_level(logging.INFO, logger="vidtok_plugin"):
        toy_run(data, tmp_path / "parts", 8)
    assert f"{newest} is damaged (File is not a zip file) and left aside" in caplog.text
    assert f"Going on from {before}." in caplog.text
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert newest.with_name(f"{newest.name}.damaged").exists()


def test_a_flipped_bit_in_a_checkpoint_is_found(data: dict[Kind, Path], tmp_path: Path) -> None:
    toy_run(data, tmp_path, 4)
    newest, before = find_checkpoints(tmp_path / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert training.last_checkpoint(tmp_path / "checkpoints") == before


def test_no_damage_to_the_directory_of_a_checkpoint_goes_unnoticed(data: dict[Kind, Path], tmp_path: Path) -> None:
    """Some flipped bits there were errors of the zip module's, and with some the file counted as whole."""
    toy_run(data, tmp_path, 2)
    (path,) = find_checkpoints(tmp_path / "checkpoints")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole) - 1500, len(whole), 60):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        if find_damage(path) is None:  # some bits mean nothing, such as those of a date
            torch.load(path, weights_only=True)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(data: dict[Kind, Path], tmp_path: Path) -> None:
    toy_run(data, tmp_path, 4)
    for path in find_checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all checkpoints in .* are damaged; remove that folder to train anew"):
        toy_run(data, tmp_path, 6)


def test_a_checkpoint_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    class Breaks:
        def __reduce__(self) -> Any:
            raise OSError("no space left")

    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"whole": torch.zeros(3)}, path)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10_000), "more": Breaks()}, path)
    assert torch.load(path, weights_only=True).keys() == {"whole"}


def test_the_newest_checkpoints_are_kept(data: dict[Kind, Path], tmp_path: Path) -> None:
    toy_run(data, tmp_path, 9, "keep_checkpoints=3")
    names = [path.name for path in find_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000009.ckpt", "step-00000008.ckpt", "step-00000006.ckpt"]
    cfg = configure("world_model", settings("world_model", data["world_model"], tmp_path))
    assert training.last_checkpoint(cfg.checkpoints) == tmp_path / "checkpoints" / names[0]
