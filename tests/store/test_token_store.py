"""A token store returns what was written, in windows within episodes, and checks whose tokens it holds."""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stores import METADATA, episode_data, write_episodes

from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.writer import TokenStoreWriter

MB = 10**6


def test_episodes_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 1, 7]), "train")
    assert len(store) == 3 and store.num_steps == 13 and store.num_tokens == 13 * 6
    assert store.metadata == METADATA
    assert [episode.name for episode in store.episodes] == ["0.mp4", "1.mp4", "2.mp4"]
    for index, steps in enumerate((5, 1, 7)):
        written, window = episode_data(steps, index), store.window(index, 0, steps)
        assert torch.equal(window["codes"], written["codes"].long())
        assert torch.equal(window["actions"], written["actions"])
        assert torch.equal(window["actions_known"].sum(-1), written["num_actions"].long())
        assert window["valid"].all() and window["start"] == 0


def test_a_window_is_a_part_of_its_episode(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 4]))
    window = store.window(1, 1, 3)
    assert window["codes"][:, 0, 0].tolist() == [2, 3, 4]
    assert window["actions"].tolist() == [[1, 2], [3, 4], [0, 1]]
    assert window["actions_known"].tolist() == [[True, True], [True, True], [True, False]]


@pytest.mark.parametrize(("episode", "start", "length"), [(0, 3, 3), (0, -1, 2), (0, 0, 0), (2, 0, 1), (-1, 0, 1)])
def test_a_window_outside_its_episode_is_refused(tmp_path: Path, episode: int, start: int, length: int) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 4]))
    with pytest.raises(
        ValueError, match=r"must (lie|begin) within its episode's steps 0\.\.4|episode must be in 0\.\.1"
    ):
        store.window(episode, start, length)


def test_windows_are_zero_after_the_end_of_their_episode(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 4, 2], per_shard=3))
    windows = store.windows([1, 0], [2, 0], 4)
    assert windows["valid"].tolist() == [[True, True, False, False], [True] * 4]
    assert windows["codes"][0, :, 0, 0].tolist() == [3, 4, 0, 0]  # not the codes of the next episode
    assert not windows["actions_known"][0, 2:].any()
    assert windows["start"].tolist() == [2, 0]


@pytest.mark.parametrize(("episode", "start"), [(0, 5), (1, -1), (2, 0), (-1, 0)])
def test_a_window_that_begins_outside_its_episode_is_refused(tmp_path: Path, episode: int, start: int) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 4]))
    with pytest.raises(
        ValueError, match=r"must begin within its episode's steps 0\.\.\d, got|episode must be in 0\.\.1"
    ):
        store.windows([0, episode], [0, start], 2)


@pytest.mark.parametrize(
    "sizes", [{"kind": "continuous"}, {"patch_dim": 4}, {"codebook_size": None}, {"kind": "fsq"}, {"kind": "other"}]
)
def test_metadata_of_no_kind_or_both_kinds_of_tokens_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="kind must be discrete with a codebook_size or continuous with a patch_dim"):
        replace(METADATA, **sizes)


def test_splits_are_read_one_at_a_time_or_together(tmp_path: Path) -> None:
    write_episodes(tmp_path, "validation", [3])
    write_episodes(tmp_path, "train", [5, 4])
    assert [episode.split for episode in TokenStore(tmp_path).episodes] == ["train", "train", "validation"]
    assert TokenStore(tmp_path, "validation").window(0, 1, 2)["codes"][:, 0, 0].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError, match="no episodes of the split test; it has the splits train, validation"):
        TokenStore(tmp_path, "test")


def test_shards_may_be_added_while_a_store_is_read(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5]))
    write_episodes(tmp_path, "train", [3, 4])
    assert len(store) == 1 and store.window(0, 4, 1)["codes"][0, 0, 0] == 4
    assert TokenStore(tmp_path).steps.tolist() == store.refreshed().steps.tolist() == [5, 3, 4]


def test_a_store_may_have_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    write_episodes(tmp_path, "train", [3] * 40, per_shard=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        assert TokenStore(tmp_path).window(39, 0, 3)["valid"].all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_interrupted_shard_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_episodes(tmp_path, "train", [5])
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidtok_plugin.common.atomic_files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TokenStoreWriter(tmp_path, METADATA).write_shard("train", [entry], [episode_data(3)])
    monkeypatch.undo()
    assert len(TokenStore(tmp_path)) == 1
    TokenStoreWriter(tmp_path, METADATA).write_shard("train", [entry], [episode_data(3)])
    assert TokenStore(tmp_path).steps.tolist() == [5, 3]


def test_a_store_of_videos_without_actions_has_no_actions(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, replace(METADATA, action_space={}))
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")
    writer.write_shard("train", [entry], [{"codes": episode_data(3)["codes"]}])
    assert set(TokenStore(tmp_path).window(0, 0, 2).keys()) == {"codes", "valid", "episode", "start"}


def test_another_tokenizers_store_is_refused(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5]))
    store.check(SimpleNamespace(hash="of another decoder", token_hash="def"))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="was written by another tokenizer .token hash def, not xyz.; load .* --update"
    ):
        store.check(SimpleNamespace(hash="abc", token_hash="xyz"))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="was written by another tokenizer .token hash def, not xyz.; tokenize it again .* --update"
    ):
        TokenStoreWriter(tmp_path, replace(METADATA, token_hash="xyz"))
    with pytest.raises(
        ValueError,
        match="fps must be the same throughout a store, 30.0, got 15.0 of the episodes to be added .* --update",
    ):
        TokenStoreWriter(tmp_path, replace(METADATA, fps=15.0))


def test_a_store_that_another_tokenizer_takes_over_during_writing_is_refused(tmp_path: Path) -> None:
    """Two commands with different tokenizers may create the same store at the same moment."""
    writer = TokenStoreWriter(tmp_path, METADATA)
    (tmp_path / "store.json").unlink()
    TokenStoreWriter(tmp_path, replace(METADATA, token_hash="xyz"))
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")
    with pytest.raises(ValueError, match="was written by another tokenizer .token hash xyz, not def."):
        writer.write_shard("train", [entry], [episode_data(3)])


def test_a_numbered_shard_is_written_once(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, METADATA)
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")
    assert writer.write_shard("train", [entry], [episode_data(3)], 4) == writer.split_folder("train") / "shard_00004"
    writer.write_shard("train", [entry], [episode_data(3)], 4)
    assert TokenStore(tmp_path).steps.tolist() == [3]
    with pytest.raises(ValueError, match=r"shard_00004 must hold the episodes from y\.mp4 on, but another process"):
        writer.write_shard("train", [replace(entry, name="y.mp4")], [episode_data(3)], 4)
    assert writer.write_shard("train", [entry], [episode_data(3)]).name == "shard_00005"


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, METADATA)
    for number in (100_000, 3, 99_999):
        entry = StoredEpisode(name=str(number), steps=3, frames=5, digest="")
        writer.write_shard("train", [entry], [episode_data(3)], number)
    assert [episode.name for episode in TokenStore(tmp_path).episodes] == ["3", "99999", "100000"]


def test_metadata_with_tuples_is_read_back_equal(tmp_path: Path) -> None:
    metadata = replace(METADATA, action_space={"kind": "discrete", "size": 5, "meanings": ("noop", "left")})
    write_episodes(tmp_path, "train", [5], metadata=metadata)
    write_episodes(tmp_path, "train", [3], metadata=metadata)
    assert TokenStore(tmp_path).metadata.action_space["meanings"] == ["noop", "left"]


def test_a_folder_without_a_store_or_with_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        TokenStore(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="is not a token store"):
        TokenStore(tmp_path)
    TokenStoreWriter(tmp_path, METADATA)
    with pytest.raises(FileNotFoundError, match="has no episodes; no shard has been written yet"):
        TokenStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="format of .* must be 2, got 1: another version .* another folder"):
        TokenStore(tmp_path)


def test_windows_are_read_fast(tmp_path: Path) -> None:
    """Thousands per second; slower reading would hold up training."""
    store = TokenStore(write_episodes(tmp_path, "train", [200] * 8))
    start = time.perf_counter()
    for _ in range(10):
        store.windows([index % 8 for index in range(100)], range(100), 8)
    assert time.perf_counter() - start < 1


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million steps of 8 x 8 tokens, in 20,000 episodes."""
    folder, metadata = tmp_path_factory.mktemp("large"), replace(METADATA, height=8, width=8)
    writer = TokenStoreWriter(folder, metadata)
    data = {**episode_data(50), "codes": torch.randint(12, (50, 8, 8), dtype=torch.int32)}
    for number in range(625):
        entries = [StoredEpisode(name=f"{number}_{i}.mp4", steps=50, frames=99, digest="0" * 64) for i in range(32)]
        writer.write_shard("train", entries, [data] * 32, number)
    return folder


@pytest.mark.slow
def test_opening_a_million_steps_takes_work_per_shard_not_per_step(large: Path) -> None:
    """Counted, since a loaded machine would fail a timed test: `benchmarks/token_store.py` measures the time."""
    calls, read, store = work_of(lambda: TokenStore(large))
    assert store.num_steps == 1_000_000 and len(store) == 20_000
    assert calls < 250_000  # 170,000: 240 for each of 625 shards, and one for each episode
    assert read < 10 * MB  # 4: headers and records, where the arrays have 272


def work_of(operation: Callable[[], Any]) -> tuple[int, int, Any]:
    """The number of calls of Python and C functions, the bytes read from files, and the operation's result."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    sys.setprofile(count)
    try:
        result = operation()
    finally:
        sys.setprofile(None)
    return calls, bytes_read() - before, result


@pytest.mark.slow
def test_ten_thousand_random_windows_a_second_are_read_by_one_process(large: Path) -> None:
    store, rng = TokenStore(large), np.random.default_rng(0)

    def rate() -> float:
        start = time.perf_counter()
        for _ in range(250):
            store.windows(rng.integers(len(store), size=8), rng.integers(43, size=8), 8)
        return 2000 / (time.perf_counter() - start)

    assert max(rate() for _ in range(5)) > 10_000
