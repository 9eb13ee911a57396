"""Episodes become tokens and actions in a store, equal to those of the whole videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from progress_bars import ended_bars
from recordings import contents, tiny_adapter, write_episode, write_folder

from vidtok_plugin import VidTok
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store import encode as encoding
from vidtok_plugin.store import shard_encoder
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.network.fast import dispatch
from vidtok_plugin.video.episodes import find_episodes, find_videos
from vidtok_plugin.video.reading import read_frames
from vidtok_plugin.video.writing import write_video
from world_model.actions import group_actions

FRAMES = {"a": 17, "b": 11, "c": 1}  # 11: the last step has two frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("episodes"), FRAMES)


@pytest.mark.parametrize("chunk_frames", [1, 6, 64])
def test_stored_tokens_equal_those_of_the_whole_video(folder: Path, tmp_path: Path, chunk_frames: int) -> None:
    adapter, episodes = tiny_adapter(), find_episodes(folder)
    store = write_store(adapter, episodes, tmp_path, chunk_frames=chunk_frames, episodes_per_shard=2)
    assert [episode.frames for episode in store.episodes] == list(FRAMES.values())
    for index, episode in enumerate(episodes):
        window = store.window(index, 0, int(store.steps[index]))
        video = torch.from_numpy(read_frames(episode.path)).permute(3, 0, 1, 2)[None]
        assert torch.equal(window["codes"].flatten(), adapter.encode(video).ids[0])
        grouped = group_actions(torch.from_numpy(episode.actions)[None], 4)
        assert torch.equal(window["actions"], grouped.values[0])
        assert torch.equal(window["actions_known"], grouped.known[0])


def test_the_store_is_the_same_to_the_byte_for_any_threads_and_groups(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, episodes, stores = tiny_adapter(), find_episodes(folder), []
    for threads, pixels in ((1, 2**19), (2, 2**19), (1, 16 * 16 * 4)):
        monkeypatch.setitem(dispatch.GROUP_PIXELS, "cpu", pixels)
        output = tmp_path / f"{threads}_{pixels}"
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            write_store(adapter, episodes, output, clip_frames=9)
        finally:
            torch.set_num_threads(before)
        stores.append(contents(output))
    assert stores[0] == stores[1] == stores[2]


def test_the_progress_bar_ends_at_the_number_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten parts of 0.1 add up to less than an episode."""
    folder = write_folder(tmp_path / "episodes", {"a": 41, "b": 5})
    bars = ended_bars(monkeypatch)
    write_store(tiny_adapter(), find_episodes(folder), tmp_path / "store", clip_frames=5)
    assert bars == [("tokens (train)", 2, 2)]


def test_encoding_on_a_cpu_keeps_freed_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time went into page faults on memory that the chunk before had returned."""
    keeping = []

    @contextmanager
    def keep() -> Iterator[None]:
        keeping.append(True)
        yield
        keeping.clear()

    def encode(*arguments: Any) -> Any:
        assert keeping
        return original(*arguments)

    original = encoding.encode_episode
    monkeypatch.setattr(shard_encoder, "keeping_freed_memory", keep)
    monkeypatch.setattr(encoding, "encode_episode", encode)
    assert len(write_store(tiny_adapter(), find_episodes(folder), tmp_path)) == 3 and not keeping
    with pytest.raises(AssertionError):
        write_store(tiny_adapter(), find_episodes(folder), tmp_path / "off", keep_freed_memory=False)


def test_clips_are_separate_streams_that_share_a_frame(folder: Path, tmp_path: Path) -> None:
    adapter, episodes = tiny_adapter(), find_episodes(folder)
    store = write_store(adapter, episodes, tmp_path, clip_frames=9)
    assert [(e.name, e.first_frame, e.frames, e.steps) for e in store.episodes] == [
        ("a.mp4", 0, 9, 3),
        ("a.mp4", 8, 9, 3),
        ("b.mp4", 0, 9, 3),
        ("b.mp4", 8, 3, 2),
        ("c.mp4", 0, 1, 1),
    ]
    video = torch.from_numpy(read_frames(episodes[0].path, range(8, 17))).permute(3, 0, 1, 2)[None]
    window = store.window(1, 0, 3)
    assert torch.equal(window["codes"].flatten(), adapter.encode(video).ids[0])
    assert window["actions"][1:].flatten().tolist() == episodes[0].actions[9:17].tolist()
    with pytest.raises(ValueError, match="clip_frames must be the same throughout a store, 9, got None"):
        write_store(adapter, episodes, tmp_path)
    with pytest.raises(ValueError, match=r"clip_frames must be 1 \+ k \* 4 .* got 8; .* 5 and 9"):
        write_store(adapter, episodes, tmp_path, clip_frames=8)


def test_the_metadata_describes_tokens_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter()
    store = write_store(adapter, find_episodes(folder), tmp_path)
    store.check(adapter)
    meta = store.metadata
    assert (meta.codebook_size, meta.fsq_levels, meta.height, meta.width) == (12, (4, 3), 2, 2)
    assert (meta.temporal_factor, meta.fps) == (4, 30)
    assert meta.action_space["meanings"] == ["noop", "left", "right"]
    assert meta.tokenizer["ch"] == 4 and meta.preset is None
    assert (meta.kind, meta.token_hash, meta.adapter_hash) == ("discrete", adapter.token_hash, adapter.hash)
    assert [episode.name for episode in store.episodes] == ["a.mp4", "b.mp4", "c.mp4"]


def test_the_metadata_names_the_tokenizers_preset(folder: Path, tmp_path: Path) -> None:
    store = write_store(TokenizerAdapter(VidTok.from_preset("vidtok_tiny")), find_episodes(folder)[2:], tmp_path)
    assert store.metadata.preset == "vidtok_tiny"


def test_an_interrupted_run_continues_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, episodes = tiny_adapter(), find_episodes(folder)
    write_store(adapter, episodes[:2], tmp_path, episodes_per_shard=1)
    encoded = []

    def encode(adapter: TokenizerAdapter, episode: Any, *arguments: Any) -> Any:
        encoded.append(episode.path.name)
        return original(adapter, episode, *arguments)

    original = encoding.encode_episode
    monkeypatch.setattr(encoding, "encode_episode", encode)
    store = write_store(adapter, episodes, tmp_path)
    assert encoded == ["c.mp4"] and len(store) == 3
    write_store(adapter, episodes, tmp_path)
    assert encoded == ["c.mp4"]


def test_videos_without_actions_are_stored_by_their_paths(folder: Path, tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), find_videos(folder), tmp_path, root=folder.parent, split="test")
    assert store.metadata.action_space == {}
    assert store.episodes[0].name == f"{folder.name}/a.mp4" and store.episodes[0].split == "test"


def test_episodes_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    adapter, episodes = tiny_adapter(), find_episodes(folder)
    write_store(adapter, episodes[:1], tmp_path / "store")
    with pytest.raises(ValueError, match="was written by another tokenizer"):
        write_store(tiny_adapter(1), episodes, tmp_path / "store")
    with pytest.raises(ValueError, match="there must be at least one episode"):
        write_store(adapter, [], tmp_path / "store")
    with pytest.raises(ValueError, match=r"names must differ, got a\.mp4 twice"):
        write_store(adapter, [episodes[0], episodes[0]], tmp_path / "store")

    write_episode(tmp_path / "wide" / "w.mp4", 9, size=24)
    with pytest.raises(ValueError, match="height must be the same throughout a store, 2, got 3 of w.mp4"):
        write_store(adapter, [*episodes, *find_episodes(tmp_path / "wide")], tmp_path / "other")
    write_episode(tmp_path / "odd" / "o.mp4", 9, size=20)
    with pytest.raises(ValueError, match="height must be a multiple of 8"):
        write_store(adapter, find_episodes(tmp_path / "odd"), tmp_path / "other")
    write_episode(tmp_path / "silent" / "s.mp4", 9, meta={"fps": 30})
    with pytest.raises(ValueError, match="must describe the action space of its discrete actions, in its JSON"):
        write_store(adapter, find_episodes(tmp_path / "silent"), tmp_path / "other")


def test_a_changed_video_is_refused(tmp_path: Path) -> None:
    adapter = tiny_adapter()
    write_episode(tmp_path / "videos" / "v.mp4", 9)
    write_store(adapter, find_episodes(tmp_path / "videos"), tmp_path / "store")
    write_episode(tmp_path / "videos" / "v.mp4", 13)
    with pytest.raises(ValueError, match=r"v\.mp4 has changed since it was written"):
        write_store(adapter, find_episodes(tmp_path / "videos"), tmp_path / "store")
    frames = np.zeros((9, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "videos" / "v.mp4", frames, fps=30)  # it still has 13 actions
    with pytest.raises(ValueError, match="one action for each frame, got 13 actions for 9 frames"):
        write_store(adapter, find_episodes(tmp_path / "videos"), tmp_path / "other")
