"""Video files are listed once; changed ones are seen, and an index that cannot be used is none."""

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_files import moving_noise, write_file

from vidtok_plugin.video import kept_index, open_episodes, pyav_reader, reading
from vidtok_plugin.video.kept_index import Version
from vidtok_plugin.video.listing import Frames
from vidtok_plugin.video.reading import ReaderPool, count_frames, listed_times, probe, read_frames

LONG_AGO = 1_000_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are listed, in order."""
    names: list[str] = []
    original = pyav_reader.list_frames

    def list_frames(path: Any, *arguments: Any) -> Frames:
        names.append(Path(path).name)
        return original(path, *arguments)

    monkeypatch.setattr(pyav_reader, "list_frames", list_frames)
    return names


def start_again() -> None:
    """What this process knows of videos is forgotten, as by a new one."""
    kept_index._close_all()
    reading.close_readers()
    reading._counted.cache_clear()
    reading._probed.cache_clear()


def video(path: Path, num_frames: int, *, changed: int = LONG_AGO, **settings: Any) -> Path:
    write_file(path, moving_noise(num_frames), **settings)
    os.utime(path, (changed, changed))
    return path


def test_second_start_lists_nothing(tmp_path: Path, cache: Path, listed: list[str]) -> None:
    names = [video(tmp_path / "data" / f"{number}.mp4", 3 + number).name for number in range(3)]
    first = [(episode.num_frames, episode.size, episode.fps) for episode in open_episodes(tmp_path / "data")]
    times = [episode.times() for episode in open_episodes(tmp_path / "data")]
    assert sorted(set(listed)) == names
    listed.clear()
    start_again()
    episodes = open_episodes(tmp_path / "data")
    assert [(episode.num_frames, episode.size, episode.fps) for episode in episodes] == first
    assert first == [(3 + number, (32, 32), 30.0) for number in range(3)]
    assert all(np.array_equal(episode.times(), before) for episode, before in zip(episodes, times, strict=True))
    assert not listed


@pytest.mark.parametrize("same_size", [False, True])
def test_changed_file_is_seen(tmp_path: Path, cache: Path, same_size: bool) -> None:
    path = video(tmp_path / "a.mp4", 3)
    longer = video(tmp_path / "b.mp4", 5)
    if same_size:  # the box is none that FFmpeg reads
        size = max(path.stat().st_size, longer.stat().st_size) + 8
        for file in (path, longer):
            missing = size - file.stat().st_size
            file.write_bytes(file.read_bytes() + missing.to_bytes(4, "big") + b"free" + bytes(missing - 8))
            os.utime(file, (LONG_AGO, LONG_AGO))
    assert (count_frames(path), probe(path).num_frames) == (3, 3)
    start_again()
    path.write_bytes(longer.read_bytes())
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    assert (count_frames(path), probe(path).num_frames, len(listed_times(path))) == (5, 5, 5)
    assert np.array_equal(read_frames(path), read_frames(longer))


def test_file_that_may_still_change_is_not_kept(tmp_path: Path, cache: Path, listed: list[str]) -> None:
    """Its time of change could stay the same: file systems count it in steps of some milliseconds."""
    path = video(tmp_path / "a.mp4", 3, changed=int(time.time()) + 1)
    for _ in range(2):
        assert count_frames(path) == 3
        start_again()
    assert listed == ["a.mp4", "a.mp4"]


@pytest.mark.parametrize("times", [None, [0, 33, 70, 100, 400]])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_kept_listing_reads_the_same_frames(
    tmp_path: Path, cache: Path, listed: list[str], suffix: str, times: list[int] | None
) -> None:
    path = video(tmp_path / f"a{suffix}", 5, times=times, b_frames=2, keyframe_interval=3)
    before, when = read_frames(path, [4, 1, 3]), reading.frame_times(path)
    start_again()
    pool = ReaderPool()
    assert np.array_equal(read_frames(path, [4, 1, 3], pool=pool), before)
    assert np.array_equal(reading.frame_times(path, pool=pool), when)
    assert np.array_equal(listed_times(path), when)
    assert len(listed) == 1
    pool.clear()


@pytest.mark.parametrize("pts", [None, [-2, 0, 7]])
def test_frames_survive_packing(pts: list[int] | None) -> None:
    frames = Frames(num_frames=3, pts=pts, keys=[-2, 7], seekable=pts is not None, closed=False, whole=True)
    assert kept_index.listing(frames, fps=30.0, time_base=0.5).frames == frames


def test_damaged_index_is_started_anew(
    tmp_path: Path, cache: Path, listed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = video(tmp_path / "a.mp4", 3)
    count_frames(path)
    start_again()
    (cache / "videos.sqlite").write_bytes(b"no database" * 1000)
    for _ in range(2):
        assert count_frames(path) == 3
        start_again()
    assert len(listed) == 2
    assert "is damaged" in caplog.text and "videos.sqlite" in caplog.text


def test_unwritable_cache_is_harmless(
    tmp_path: Path, cache: Path, listed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache.write_text("a file in the place of the folder")
    path = video(tmp_path / "a.mp4", 3)
    for _ in range(2):
        assert (count_frames(path), probe(path).num_frames) == (3, 3)
        start_again()
    assert len(listed) > 1
    assert caplog.text.count("listed anew each time") == 1


def _keep(first: int, folder: str) -> None:
    frames = Frames(num_frames=1, pts=[0], keys=[0], seekable=True, closed=True, whole=True)
    for number in range(first, first + 100):
        kept_index.keep(
            Version(path=f"{folder}/{number}", size=number, changed=0), kept_index.listing(frames, 1.0, 1.0)
        )
        if number % 10 == 0:
            kept_index.flush()
    kept_index.flush()


def test_several_processes_keep_what_each_found(tmp_path: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    _keep(0, str(tmp_path))  # whose connection must not be used by the others
    processes = [context.Process(target=_keep, args=(100 * number, str(tmp_path))) for number in range(1, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    start_again()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for number in range(400):
        assert kept_index.find(Version(path=f"{tmp_path}/{number}", size=number, changed=0)) is not None
    assert kept_index.find(Version(path=f"{tmp_path}/1", size=2, changed=0)) is None
