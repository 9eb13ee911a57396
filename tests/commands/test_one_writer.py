"""An output has one writer at a time: a second one is refused, and what a live writer is writing stays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_folder
from training_runs import make_store, run_here, settings

from vidtok_plugin.common import folder_lock
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.writing import VideoWriter
from world_model.recording.record import RecordConfig, record

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.05)
    monkeypatch.setattr(folder_lock, "SHARED_PATIENCE", 0.05)


def train(output: Path) -> None:
    torch.manual_seed(0)
    run_here("world_model", settings("world_model", make_store(output.parent / "tokens"), output))


def play(output: Path) -> None:
    pytest.importorskip("ale_py")
    record(RecordConfig(env="ALE/Boxing-v5", output=str(output)), show_progress=False)


@pytest.mark.parametrize("write", [train, play])
def test_a_second_process_in_one_folder_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Two recordings left a video with another's JSON, two trainings each other's checkpoints."""
    output = tmp_path / "output"
    with FolderLock(output), pytest.raises(ValueError, match=rf"{output} is being written by process \d+ on "):
        write(output)
    assert not output.exists()


def test_a_second_writer_of_one_video_is_refused(tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", fps=10) as first:
        with pytest.raises(ValueError, match=r"a\.mp4 is being written by another process"):
            VideoWriter(tmp_path / "a.mp4", fps=10)
        first.write(frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def tokenize(folder: Path, output: Path, *names: str) -> TokenStore:
    episodes = [episode for episode in find_episodes(folder) if not names or episode.path.stem in names]
    return write_store(tiny_adapter(), episodes, output, episodes_per_shard=1)


def test_a_split_has_one_writer(tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "episodes", {"a": 5}), tmp_path / "store"
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model")

    def command(split: str) -> list[str]:
        config = TokenizeConfig(split=split)
        return tokenize_folder(FolderConfig(folder=folder, output=output, model=tmp_path / "model", tokenize=config))

    with FolderLock(output, name=".train.lock"):
        with pytest.raises(ValueError, match=f"{output} is being written by process"):
            command("train")
        with pytest.raises(ValueError, match=f"{output} is being written by process"):
            tokenize(folder, output)
        assert command("validation")
    assert command("train")
    assert not [path for path in output.rglob(".*")]


def test_what_a_live_process_writes_stays_until_it_has_ended(tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "episodes", {"a": 5, "b": 5}), tmp_path / "store"
    tokenize(folder, output, "a")
    (shard,) = output.glob("tokens_*/train/shard_00000")
    partial = shard.with_name(f".{shard.name}.part-0a1b")
    with FolderLock(output, shared=True):
        partial.mkdir()
        tokenize(folder, output)
        assert partial.exists()
    tokenize(folder, output)
    assert not partial.exists()


def test_planned_episodes_that_are_gone_leave_their_shards(tmp_path: Path) -> None:
    assert plan_shards(tmp_path, ["a", "b", "c"], 2) == [["a", "b"], ["c"]]
    assert plan_shards(tmp_path, ["c", "d"], 2) == [["a", "b"], ["c"], ["d"]]  # another folder's shard stays
    assert plan_shards(tmp_path, ["a", "c", "d"], 2) == [["a"], ["c"], ["d"]]  # b's file is gone
