"""An output has one writer at a time: a second one is refused, and what a live writer is writing stays."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_folder
from training_runs import make_store, run_here, settings

from vidtok_plugin.common import folder_lock
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.processes import Process
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import TokenizeConfig, WrittenShards, write_shards
from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.writing import VideoWriter
from world_model.recording.record import RecordConfig, record

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
LAUNCHED = Process(rank=0, world_size=2)


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


def tokenize(folder: Path, output: Path, *names: str, process: Process) -> WrittenShards:
    episodes = [episode for episode in find_episodes(folder) if not names or episode.path.stem in names]
    return write_shards(tiny_adapter(), episodes, output, TokenizeConfig(episodes_per_shard=1), process)


def test_a_split_has_one_command_or_those_of_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = write_folder(tmp_path / "episodes", {"a": 5}), tmp_path / "store"
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model")

    def command(split: str) -> list[str]:
        config = TokenizeConfig(split=split)
        return tokenize_folder(FolderConfig(folder=folder, output=output, model=tmp_path / "model", tokenize=config))

    with FolderLock(output, name=".train.lock"):
        with pytest.raises(ValueError, match=f"{output} is being written by process"):
            command("train")
        assert command("validation")
    with FolderLock(output, name=".train.lock", shared=True):
        with pytest.raises(ValueError, match=f"{output} is being written by another process"):
            command("train")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        assert "process 1 of 2 wrote 1 shards" in command("train")[0]
    assert not [path for path in output.rglob(".*")]


def test_what_a_live_process_writes_stays_until_it_has_ended(tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "episodes", {"a": 5, "b": 5}), tmp_path / "store"
    tokenize(folder, output, "a", process=LAUNCHED)
    (shard,) = output.glob("tokens_*/train/shard_00000")
    partial = shard.with_name(f".{shard.name}.part-0a1b")
    with FolderLock(output, shared=True):
        partial.mkdir()
        tokenize(folder, output, process=LAUNCHED)
        assert partial.exists()
    tokenize(folder, output, process=LAUNCHED)
    assert not partial.exists()


def test_no_process_drops_episodes_that_another_has_planned(tmp_path: Path) -> None:
    """The shard was written without them, and the other process took it for its own."""
    assert plan_shards(tmp_path, ["a", "b", "c"], 2) == [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match="must find the same episodes, but this one does not find b"):
        plan_shards(tmp_path, ["a", "c"], 2, alone=lambda: False)
    assert plan_shards(tmp_path, ["c", "d"], 2, alone=lambda: False) == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]  # another folder's shard
    assert plan_shards(tmp_path, ["a", "c", "d"], 2) == [["a"], ["c"], ["d"]]  # b's file is gone


def test_processes_that_do_not_find_the_same_episodes_are_told_so(tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "episodes", {"a": 5, "b": 5, "c": 5}), tmp_path / "store"
    config = TokenizeConfig(episodes_per_shard=2)
    episodes = find_episodes(folder)
    write_shards(tiny_adapter(), episodes, output, config, dataclasses.replace(LAUNCHED, rank=1))
    with FolderLock(output, shared=True), pytest.raises(ValueError, match=r"does not find b\.mp4"):
        write_shards(tiny_adapter(), episodes[::2], output, config, LAUNCHED)
    write_shards(tiny_adapter(), episodes, output, config, LAUNCHED)
    assert [episode.name for episode in TokenStore(output).episodes] == ["a.mp4", "b.mp4", "c.mp4"]
