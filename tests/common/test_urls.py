"""Objects at URLs: read by range, copied within a bound, tried again, and never with a secret in a message."""

import errno
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from recordings import tiny_adapter

from vidtok_plugin.common import remote, remote_cache, url_path
from vidtok_plugin.common.config import load_config
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.paths import as_path, user_path
from vidtok_plugin.common.remote_cache import local_file, local_folder
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.tokenizer.weights.conversion import convert
from vidtok_plugin.training.config import RunConfig
from vidtok_plugin.training.runs import build_trainer
from vidtok_plugin.video import VideoDataConfig
from vidtok_plugin.video.writing import write_video
from world_model.recording.record import RecordConfig, record


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_cache, "_unchecked", float("inf"))
    monkeypatch.setattr(remote, "MEMORY", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def place() -> Iterator[str]:
    """A new folder in memory."""
    name = f"memory://{uuid4().hex}"
    yield name
    fsspec.filesystem("memory").store.clear()


def put(url: str, data: bytes) -> str:
    fsspec.filesystem(url.partition("://")[0]).pipe_file(url, data)
    return url


def test_paths_of_urls_are_named_as_files_are() -> None:
    path = user_path("s3://bucket/videos/a.mp4")
    assert isinstance(path, UrlPath) and isinstance(as_path("s3://bucket"), UrlPath)
    assert str(path) == "s3://bucket/videos/a.mp4"
    assert (path.name, path.suffix, str(path.parent)) == ("a.mp4", ".mp4", "s3://bucket/videos")
    assert str(path.with_suffix(".actions.npy")) == "s3://bucket/videos/a.actions.npy"
    assert str(path.parent / "b" / "c.json") == "s3://bucket/videos/b/c.json"
    assert path.relative_to(user_path("s3://bucket")).as_posix() == "videos/a.mp4"
    assert pickle.loads(pickle.dumps(path)) == path == UrlPath(str(path))
    assert sorted([path, path.parent]) == [path.parent, path]


def test_questions_go_to_the_backend(place: str, cache: Path) -> None:
    put(f"{place}/a/b.txt", b"12345")
    put(f"{place}/a/c/d.txt", b"")
    root = user_path(place)
    assert (root / "a").is_dir() and not (root / "a").is_file()
    assert (root / "a/b.txt").is_file() and (root / "a/b.txt").stat().st_size == 5
    assert not (root / "a/x").exists() and not (root / "a/b").exists()
    assert [path.name for path in (root / "a").iterdir()] == ["b.txt", "c"]
    assert [str(path) for path in root.glob("*/*.txt")] == [f"{place}/a/b.txt"]
    assert (root / "a/b.txt").read_bytes() == b"12345" and (root / "a/b.txt").read_text() == "12345"


def test_nothing_can_be_written_through_a_path(place: str) -> None:
    for write in (lambda p: p.write_text("x"), lambda p: p.mkdir(), lambda p: p.unlink()):
        with pytest.raises(ValueError, match=r"memory://.*nothing but token stores can be written.*local path\.$"):
            write(user_path(f"{place}/a"))


def test_other_output_refuses_urls(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no folder here that is named like a URL."""
    monkeypatch.chdir(tmp_path)
    adapter = tiny_adapter()
    writes: list[Callable[[], Any]] = [
        lambda: adapter.save_pretrained(place),
        lambda: adapter.tokenizer.save_pretrained(place),
        lambda: write_video(f"{place}/a.mp4", np.zeros((1, 16, 16, 3), np.uint8), fps=1),
        lambda: FolderLock(place).__enter__(),
        lambda: record(RecordConfig(env="ALE/Boxing-v5", output=place)),
        lambda: convert("vidtok_tiny", place),
        lambda: build_trainer(RunConfig(output=user_path(place))),
    ]
    for write in writes:
        with pytest.raises(ValueError, match=r"memory://.*nothing but token stores can be written to a URL"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["s3://user:hunter2@bucket/a", "https://hunter2@host/a", "https://host/a?k=hunter2"])
def test_secrets_in_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"must not have a user, a password or a query; .*environment") as caught:
        user_path(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="must not have a user") as caught:
        load_config(VideoDataConfig, [], [f'train=["{url}"]'])
    assert "hunter2" not in str(caught.value)


def test_missing_backend_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ValueError, match=r"^s3://b/a: s3:// needs s3fs, .* pip install 'vidtok-plugin\[s3\]'\.$"):
        user_path("s3://b/a").exists()
    with pytest.raises(ValueError, match=r"gcsfs.*vidtok-plugin\[gcs\]"):
        user_path("gs://b/a").exists()


def test_unknown_backend_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"no-such://a/b: fsspec has no backend for no-such://"):
        user_path("no-such://a/b").exists()


def test_copies_stay_within_the_bound(place: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTOK_CACHE_GB", "0.00000045")  # 450 bytes: four copies of 100
    urls = [put(f"{place}/{number}", bytes([number]) * 100) for number in range(5)]
    copies = []
    for number, url in enumerate(urls):
        copies.append(local_file(url))
        os.utime(copies[-1].parent, (number, number))
        if number == 3:
            os.utime(local_file(urls[0]).parent, (10, 10))  # used again, so the second is the oldest
    assert [path.exists() for path in copies] == [True, False, True, True, True]
    assert local_file(urls[1]).read_bytes() == b"\x01" * 100
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 450
    with pytest.raises(ValueError, match=r"more than the cache may hold.*VIDTOK_CACHE_GB"):
        local_file(put(f"{place}/large", bytes(451)))


def test_what_a_killed_process_left_is_removed(place: str, cache: Path) -> None:
    for name, age in (("old", 2 * 86_400), ("new", 0)):
        left = cache / "copies" / f".{name}.part-0"
        left.mkdir(parents=True)
        (left / "a").write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    local_file(put(f"{place}/a", b"1"))
    assert [path.name for path in (cache / "copies").glob(".*")] == [".new.part-0"]


def test_object_that_changes_while_it_is_read_is_named(
    place: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(f"{place}/a", bytes(600))
    monkeypatch.setattr(url_path, "WHOLE", 100)
    monkeypatch.setattr(url_path, "BLOCK", 256)
    with user_path(url).open("rb") as file:
        assert file.read(10) == bytes(10)
        put(url, b"1" * 600)
        with pytest.raises(OSError, match=f"{url} has changed while it was read"):
            file.read(500)


def test_changed_object_is_copied_again(place: str, cache: Path) -> None:
    url = put(f"{place}/a", b"old")
    assert local_file(url).read_bytes() == b"old"
    put(url, b"new")
    assert local_file(url).read_bytes() == b"new"


def test_folder_is_copied_with_what_is_below(place: str, cache: Path) -> None:
    put(f"{place}/f/a", b"1")
    put(f"{place}/f/g/b", b"2")
    put(f"{place}/f2", b"3")
    folder = local_folder(f"{place}/f")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"a", "g", "g/b"}
    assert local_folder(f"{place}/f") == folder
    put(f"{place}/f/g/b", b"4")
    assert (local_folder(f"{place}/f") / "g/b").read_bytes() == b"4"


def test_failed_connection_is_tried_again_and_then_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    tries: list[int] = []

    def fail(times: int) -> str:
        tries.append(1)
        if len(tries) <= times:
            raise ConnectionResetError(errno.ECONNRESET, "cut at https://host/a?token=hunter2")
        return "done"

    assert remote.tried(place, lambda: fail(2)) == "done"
    tries.clear()
    with pytest.raises(OSError, match=r"memory://\S+ could not be read in 3 tries \(ConnectionResetError: ") as caught:
        remote.tried(place, lambda: fail(3))
    assert "hunter2" not in str(caught.value)


def test_what_is_not_there_is_not_tried_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (60.0,))
    with pytest.raises(FileNotFoundError, match="memory://"):
        local_file(f"{place}/nothing")
