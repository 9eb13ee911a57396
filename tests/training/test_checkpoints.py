"""Checkpoint files: damage is found, the newest intact one is used, and the newest few are kept."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from training_runs import configure, logged, make_store, run_here, settings

from vidtok_plugin import training
from vidtok_plugin.training.checkpoints import (
    AtomicCheckpointIO,
    find_checkpoints,
    find_damage,
    last_checkpoint,
    set_aside_damaged,
)

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
CONTENT = {
    "epoch": 3,
    "state_dict": {"weight": torch.arange(500.0), "bias": torch.zeros(3, dtype=torch.bfloat16)},
    "optimizer_states": [{"lr": 0.5, "step": 7, "moments": {0: torch.ones(2, 2)}}],
}


def save(folder: Path, step: int, content: dict[str, Any] = CONTENT) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def assert_equal(a: Any, b: Any) -> None:
    (leaves, structure), (others, other_structure) = tree_flatten(a), tree_flatten(b)
    assert structure == other_structure
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            assert leaf.dtype == other.dtype and torch.equal(leaf, other)
        else:
            assert leaf == other


def test_a_checkpoint_holds_what_was_saved(tmp_path: Path) -> None:
    assert_equal(torch.load(save(tmp_path, 1), weights_only=True), CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.ckpt"]


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """In the directory of the zip file, some flipped bits raised other errors, and with some the file seemed intact."""
    path = save(tmp_path, 2)
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    directory = rng.integers(len(intact) - 1500, len(intact), 150)
    unnoticed = 0
    for position in (*directory, *rng.integers(0, len(intact), 50)):
        content = bytearray(intact)
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        if find_damage(path) is None:  # some bits have no meaning, such as those of a date
            unnoticed += 1
            assert_equal(torch.load(path, weights_only=True), CONTENT)
    assert unnoticed < 100


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    before, newest = save(tmp_path, 2), save(tmp_path, 4)
    content = bytearray(newest.read_bytes())
    content[content.index(np.float32(123.0).tobytes())] ^= 1
    newest.write_bytes(content)
    assert last_checkpoint(tmp_path) == before


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path: Path) -> None:
    (tmp_path / "other.ckpt").touch()
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "missing") is None


def test_an_interrupted_write_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    class Breaks:
        def __reduce__(self) -> Any:
            raise OSError("no space left")

    path = save(tmp_path, 1)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path, 1, {"weights": torch.zeros(10_000), "more": Breaks()})
    assert_equal(torch.load(path, weights_only=True), CONTENT)
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_killed_run_are_set_aside(tmp_path: Path) -> None:
    resumed, damaged = save(tmp_path, 2), save(tmp_path, 4)
    (tmp_path / ".step-00000006.ckpt.part-0123").write_bytes(b"half a checkpo")
    set_aside_damaged(tmp_path, resumed)
    assert {path.name for path in tmp_path.iterdir()} == {resumed.name, f"{damaged.name}.damaged"}


# In a run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_store(tmp_path_factory.mktemp("tokens"))


def toy_run(store: Path, output: Path, steps: int, *overrides: str) -> None:
    limits = [f"trainer.max_steps={steps}", "checkpoint_every=2"]
    run_here("world_model", settings("world_model", store, output, *limits, *overrides))


def test_a_run_whose_last_checkpoint_is_truncated_resumes_from_the_one_before(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy_run(store, tmp_path / "unbroken", 8)
    toy_run(store, tmp_path / "resumed", 6)
    newest, before = find_checkpoints(tmp_path / "resumed" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    with caplog.at_level(logging.INFO, logger="vidtok_plugin"):
        toy_run(store, tmp_path / "resumed", 8)
    assert f"{newest} is damaged (File is not a zip file); trying the checkpoint before it." in caplog.text
    assert f"Resuming from {before}." in caplog.text
    assert logged(tmp_path / "resumed") == logged(tmp_path / "unbroken")
    assert newest.with_name(f"{newest.name}.damaged").exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(store: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in (2, 4):
        save(tmp_path / "checkpoints", step).write_bytes(b"")
    with pytest.raises(ValueError, match="all checkpoints in .* are damaged; restore one, or remove the folder"):
        toy_run(store, tmp_path, 6)


def test_the_newest_checkpoints_are_kept(store: Path, tmp_path: Path) -> None:
    toy_run(store, tmp_path, 9, "keep_checkpoints=3")
    names = [path.name for path in find_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000009.ckpt", "step-00000008.ckpt", "step-00000006.ckpt"]
    cfg = configure("world_model", settings("world_model", store, tmp_path))
    assert training.last_checkpoint(cfg.checkpoints) == tmp_path / "checkpoints" / names[0]
