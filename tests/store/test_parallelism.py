"""Tokenizing uses one process per core, or fewer with more threads where shards, work or memory don't suffice, or where
starting them takes longer than they save."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recordings import tiny_adapter, write_folder

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.memory import available_bytes
from vidtok_plugin.store import folder as folder_module
from vidtok_plugin.store import parallelism
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.store.parallelism import WORK_PER_SECOND, Parallelism, choose_parallelism, parallelism_of

ENOUGH: dict[str, Any] = {
    "cores": 8,
    "shards": 100,
    "work": 1000 * WORK_PER_SECOND,
    "process_bytes": 1e9,
    "available": 100e9,
}


@pytest.mark.parametrize(
    "short, processes, threads",
    [
        ({}, 8, 1),
        ({"shards": 3}, 3, 2),
        ({"shards": 9}, 3, 2),  # one of eight processes would have two shards
        ({"work": 80 * WORK_PER_SECOND}, 8, 1),
        ({"work": 40 * WORK_PER_SECOND}, 1, 8),  # they would start for longer than they save
        ({"work": 0}, 1, 8),
        ({"available": 4.5e9}, 4, 2),
        ({"available": 5.5e9}, 4, 2),
        ({"available": 0.5e9}, 1, 8),
        ({"available": None}, 8, 1),
        ({"cores": 1}, 1, 1),
    ],
)
def test_what_is_short_limits_the_processes_and_threads_take_the_cores_left(
    short: dict[str, Any], processes: int, threads: int
) -> None:
    assert choose_parallelism(**{**ENOUGH, **short}) == Parallelism(processes=processes, threads=threads)


def seconds_on_two_cores(processes: int, frames: int, shards: int) -> float:
    """Of a command on frames of 64x64, as measured: one thread encodes 645 frames a second and two 1.7 times as many;
    starting two processes takes 5.5 seconds."""
    if processes == 1:
        return frames / (1.7 * 645)
    return 5.5 + frames * -(-shards // 2) / shards / 645


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 100])
def test_the_choice_is_never_slower_than_one_process(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,680 frames of 64x64 were encoded by two processes at 574 frames a second, and by one at 748."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(parallelism, "available_bytes", lambda: None)
    adapter = TokenizerAdapter(VidTok.from_preset("vidtok_tiny"))
    chosen = {}
    for frames in (100, 1_000, 10_680, 30_000, 60_000, 100_000, 227_840, 1_000_000):
        video: Any = SimpleNamespace(num_frames=frames // shards, size=(64, 64))
        chosen[frames] = parallelism_of(adapter, [video] * shards, episodes_per_shard=1).processes
        seconds = [seconds_on_two_cores(processes, frames, shards) for processes in (1, 2)]
        assert seconds[chosen[frames] - 1] <= seconds[0] * (1 + 1e-9)
    assert chosen[10_680] == 1
    assert chosen[227_840] == (2 if shards % 2 == 0 else 1)


def test_a_large_batch_has_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are in memory at once: 15 more videos of 64 frames of 256x256 take 1.7 GB."""
    video: Any = SimpleNamespace(num_frames=10_000, size=(256, 256))
    monkeypatch.setattr(parallelism, "available_bytes", lambda: 8 << 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    adapter = TokenizerAdapter(VidTok.from_preset("vidtok_tiny"))
    chosen = {
        batch: parallelism_of(adapter, [video] * 256, 32, TokenizeConfig(batch=batch).batch_frames).processes
        for batch in (1, 16)
    }
    assert chosen == {1: 8, 16: 2}


@pytest.mark.parametrize("side, chosen", [(64, (8, 1)), (1024, (4, 2)), (4096, (1, 8))])
def test_large_frames_have_fewer_processes(side: int, chosen: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    video: Any = SimpleNamespace(num_frames=10_000, size=(side, side))
    monkeypatch.setattr(parallelism, "available_bytes", lambda: 8 << 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    adapter = TokenizerAdapter(VidTok.from_preset("vidtok_tiny"))
    found = parallelism_of(adapter, [video] * 256, episodes_per_shard=32)
    assert (found.processes, found.threads) == chosen


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Processes and threads of each call that would start processes; on two cores, and any work is enough."""
    calls: list[tuple[int, int]] = []

    def start(run: Any, world_size: int, recipe: Any, shards: Any, threads: int, **_: Any) -> None:
        calls.append((world_size, threads))
        raise ChildProcessError("not started")

    monkeypatch.setattr(folder_module, "run_processes", start)
    monkeypatch.setattr(parallelism, "START_SECONDS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def cfg(tmp_path: Path) -> FolderConfig:
    videos = write_folder(tmp_path / "videos", {"a": 9, "b": 9, "c": 9, "d": 9})
    tiny_adapter().save_pretrained(tmp_path / "model")
    return FolderConfig(
        folder=videos,
        output=tmp_path / "store",
        model=str(tmp_path / "model"),
        tokenize=TokenizeConfig(root=videos, episodes_per_shard=1),
    )


def with_settings(cfg: FolderConfig, **settings: Any) -> FolderConfig:
    return FolderConfig(**{**vars(cfg), **settings})


def test_a_folder_starts_one_process_per_core_unless_processes_are_given(
    cfg: FolderConfig, started: list[tuple[int, int]]
) -> None:
    for processes in (None, 3):
        with pytest.raises(ChildProcessError):
            tokenize_folder(with_settings(cfg, processes=processes))
    assert started == [(2, 1), (3, 1)]
    assert tokenize_folder(with_settings(cfg, processes=1)) == [f"{cfg.output}: 4 episodes, 48 tokens"]


def test_only_what_is_not_in_the_store_yet_counts(cfg: FolderConfig, started: list[tuple[int, int]]) -> None:
    """Two processes were started to find that there was nothing to do, or one video."""
    settings = TokenizeConfig(root=cfg.folder, episodes_per_shard=1, size=(16, 16))
    tokenize_folder(with_settings(cfg, processes=1, tokenize=settings))
    tokenize_folder(with_settings(cfg, tokenize=settings))
    write_folder(cfg.folder, {"e": 9})
    tokenize_folder(with_settings(cfg, tokenize=settings))
    assert started == []
    write_folder(cfg.folder, {"f": 9, "g": 9})
    with pytest.raises(ChildProcessError):
        tokenize_folder(with_settings(cfg, tokenize=settings))
    assert started == [(2, 1)]


def test_a_single_shard_has_one_process_and_a_warning(
    cfg: FolderConfig, started: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    tokenize_folder(with_settings(cfg, tokenize=TokenizeConfig(root=cfg.folder, episodes_per_shard=4)))
    assert started == [] and "number of shards: 1 in place of 2; lower episodes_per_shard" in caplog.text


def test_fewer_shards_than_processes_are_warned_of(
    cfg: FolderConfig, started: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ChildProcessError):
        tokenize_folder(with_settings(cfg, processes=5))
    assert "only 4 shards to write for 5 processes; lower episodes_per_shard" in caplog.text


def test_available_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3072\n")
    assert available_bytes(meminfo, tmp_path) == 2048
    assert (available_bytes(tmp_path / "none", tmp_path) or 0) > 0
