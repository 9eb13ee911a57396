"""Recordings of each kind at URLs are those of the same files in a folder, and so are stores."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from object_stores import put_folder
from PIL import Image
from recordings import tiny_adapter, write_episode
from video_files import moving_noise, write_file

from vidtok_plugin import open_episodes
from vidtok_plugin.common import remote
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video import VideoDataConfig, VideoDataModule
from vidtok_plugin.video.sources import find_sources


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new folder in memory."""
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "MEMORY", 0.0)
    yield f"memory://{uuid4().hex}"
    fsspec.filesystem("memory").store.clear()


def recorded(folder: Path) -> None:
    write_episode(folder / "b" / "long.mp4", 9)
    write_episode(folder / "a.mp4", 5)
    write_file(folder / "videos" / "alone.mp4", moving_noise(3, height=16, width=16))
    write_file(folder / ".hidden" / "no.mp4", moving_noise(3, height=16, width=16))


def arrays(folder: Path) -> None:
    folder.mkdir()
    np.savez(folder / "a.npz", frames=moving_noise(3), fps=10, actions=np.ones((3, 2)), task="push")
    write_file(folder / "b.mp4", moving_noise(4))
    np.savez(folder / "b.npz", video="b.mp4", state=np.ones((4, 1)))


def pictures(folder: Path) -> None:
    (folder / "clip").mkdir(parents=True)
    for number, frame in enumerate(moving_noise(11)):
        Image.fromarray(frame).save(folder / "clip" / f"{number}.png")
    (folder / "clip.json").write_text('{"fps": 12}')


@pytest.mark.parametrize("write", [recorded, arrays, pictures])
def test_episodes_at_a_url_are_those_of_the_folder(write: Callable[[Path], None], place: str, tmp_path: Path) -> None:
    write(tmp_path / "data")
    here, there = open_episodes(tmp_path / "data"), open_episodes(put_folder(tmp_path / "data", f"{place}/data"))
    assert [episode.name for episode in there] == [episode.name for episode in here]
    for one, other in zip(here, there, strict=True):
        assert (one.num_frames, one.size, one.fps, one.task) == (other.num_frames, other.size, other.fps, other.task)
        np.testing.assert_array_equal(one.read(range(one.num_frames)), other.read(range(one.num_frames)))
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.digest() == other.digest()
        assert str(other.path).startswith(f"{place}/data")


def test_sources_of_training_may_be_urls(place: str, tmp_path: Path) -> None:
    recorded(tmp_path / "data")
    url = put_folder(tmp_path / "data", f"{place}/data")
    fsspec.filesystem("memory").pipe_file(f"{place}/list.csv", f"videos\ndata/a.mp4\n{url}/b/long.mp4\n".encode())
    (source,) = find_sources([f"{place}/list.csv"])
    assert [str(video) for video in source.videos] == [f"{url}/a.mp4", f"{url}/b/long.mp4"]
    settings: dict[str, Any] = {"clip_length": 3, "height": 16, "width": 16, "batch_size": 2}
    clips = []
    for entry in (url, str(tmp_path / "data")):
        module = VideoDataModule(VideoDataConfig(train=(entry,), **settings))
        module.setup("fit")
        clips.append(next(iter(module.train_dataloader())).video)
    assert (clips[0] == clips[1]).all()


def test_changed_video_is_seen(place: str, tmp_path: Path) -> None:
    for name, frames in (("old", 3), ("new", 4)):
        write_file(tmp_path / name / "a.mp4", moving_noise(frames))
        (episode,) = open_episodes(put_folder(tmp_path / name, place))
        assert (episode.num_frames, len(episode.read(range(frames)))) == (frames, frames)


def test_nothing_at_a_url_is_one_sentence(place: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^Folder {place}/none doesn't exist; check the path"):
        open_episodes(f"{place}/none")


def test_store_at_a_url_equals_a_local_one(place: str, tmp_path: Path) -> None:
    recorded(tmp_path / "data")
    episodes = open_episodes(tmp_path / "data")[:2]
    here = write_store(tiny_adapter(), episodes, tmp_path / "here")
    there = write_store(tiny_adapter(), episodes, f"{place}/store")
    assert there.episodes == here.episodes == TokenStore(f"{place}/store", "train").episodes
    for index in range(2):
        steps = int(here.steps[index])
        assert (there.window(index, 0, steps) == here.window(index, 0, steps)).all()
    with pytest.raises(FileNotFoundError, match=f"{place}/none"):
        TokenStore(f"{place}/none")
