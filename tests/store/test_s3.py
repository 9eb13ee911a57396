"""Episodes, stores and worlds on a real S3 server: read by range, written whole, through cut connections."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from lerobot_datasets import write_lerobot
from object_stores import CuttingProxy, put_folder, s3_at, s3_server
from recordings import contents, tiny_adapter, write_episode, write_folder
from world_models import save_tiny_world

from vidtok_plugin import VidTok, open_episodes
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.cli import main
from vidtok_plugin.common import remote, remote_cache, url_path
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.remote_cache import local_file
from vidtok_plugin.common.url_path import RangeFile
from vidtok_plugin.store import staging
from vidtok_plugin.store.check import check_store
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video import VideoDataConfig, VideoDataModule
from vidtok_plugin.video.opening import open_videos
from vidtok_plugin.video.reading import ReaderPool
from world_model import load_world
from world_model.data import TokenDataConfig, TokenDataModule

pytestmark = pytest.mark.slow  # some seconds of starting and of requests


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_cache, "_unchecked", float("inf"))
    monkeypatch.setattr(remote, "MEMORY", 0.0)
    return tmp_path / "cache"


def put(url: str, data: bytes) -> str:
    fsspec.filesystem("s3").pipe_file(url, data)
    return url


def test_large_objects_are_read_by_range(s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3000)
    url = put(f"{s3}/large", data)
    monkeypatch.setattr(url_path, "WHOLE", 100)
    monkeypatch.setattr(url_path, "BLOCK", 256)
    asked: list[tuple[int, int]] = []

    def read_range(where: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        return remote.read_range(where, start, end)

    monkeypatch.setattr(url_path, "read_range", read_range)
    with user_path(url).open("rb") as file:
        file.seek(2000)
        assert file.read(10) == data[2000:2010]
    assert asked == [(1792, 2048)]
    file = RangeFile(url)
    assert (len(file), file[0], file[-10:], file[250:520]) == (3000, data[0], data[-10:], data[250:520])
    assert file.seek(-5, os.SEEK_END) == 2995 and file.read() == data[-5:]
    assert not (cache / "copies").exists()


def test_cut_download_from_s3_is_tried_again_and_then_named(
    s3: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = os.urandom(300_000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(data)
    url = put_folder(tmp_path / "data", f"{s3}/cut") + "/a.bin"
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    proxy = CuttingProxy(os.environ["AWS_ENDPOINT_URL"])
    with s3_at(proxy.endpoint):
        proxy.cuts = 2
        assert local_file(url).read_bytes() == data
        assert proxy.done == 2
        put(url, data[::-1])
        proxy.cuts = 1000
        with pytest.raises(OSError, match=r"s3://recordings/cut/a\.bin could not be read in 3 tries") as caught:
            local_file(url)
        assert "hunter2" not in str(caught.value)
        assert len(list((cache / "copies").iterdir())) == 1  # nothing of what came in part
    proxy.close()


FRAMES = {"a": 9, "b": 5, "c/d": 1}


def windows(store: TokenStore) -> list[tuple[str, Any]]:
    return [(e.name, store.window(i, 0, int(store.steps[i]))["codes"].tolist()) for i, e in enumerate(store.episodes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("episodes"), FRAMES)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_dataset_is_read_from_its_bucket(s3: str, tmp_path: Path, version: str) -> None:
    written = write_lerobot(tmp_path / "dataset", [5, 4], version=version)
    there = open_episodes(put_folder(written.root, f"{s3}/dataset_{version}"))
    for here, episode in zip(open_episodes(written.root), there, strict=True):
        assert (episode.name, episode.num_frames, episode.task) == (here.name, here.num_frames, here.task)
        np.testing.assert_array_equal(episode.read(range(4)), here.read(range(4)))
        np.testing.assert_array_equal(episode.actions, here.actions)
        np.testing.assert_array_equal(episode.state, here.state)
        assert episode.digest() == here.digest()


def test_clips_of_a_long_video_are_read_by_range(
    s3: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are numbered once, for which it is read whole; then a clip takes what is around it."""
    write_episode(tmp_path / "v" / "a.mp4", 400, size=64)
    size = (tmp_path / "v" / "a.mp4").stat().st_size
    url = put_folder(tmp_path / "v", f"{s3}/long") + "/a.mp4"
    monkeypatch.setattr(url_path, "WHOLE", 10_000)
    monkeypatch.setattr(url_path, "BLOCK", 16_384)
    read: list[int] = []

    def read_range(where: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return remote.read_range(where, start, end)

    monkeypatch.setattr(url_path, "read_range", read_range)
    (here,), (there,) = open_videos(tmp_path / "v"), open_videos(url)
    assert there.num_frames == 400 and sum(read) >= size
    read.clear()
    pool = ReaderPool()
    np.testing.assert_array_equal(there.read(range(200, 205), pool=pool), here.read(range(200, 205)))
    pool.clear()
    assert 0 < sum(read) < size / 2
    assert not [path for path in cache.rglob("*.mp4") if path.is_file()]


@pytest.mark.parametrize("cuts", [2, 10_000])
def test_long_video_is_read_through_a_cut_connection_or_named(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    write_episode(tmp_path / "v" / "a.mp4", 100, size=64)
    url = put_folder(tmp_path / "v", f"{s3}/cut_video_{cuts}") + "/a.mp4"
    monkeypatch.setattr(url_path, "WHOLE", 10_000)
    monkeypatch.setattr(url_path, "BLOCK", 100_000)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    proxy = CuttingProxy(os.environ["AWS_ENDPOINT_URL"])
    with s3_at(proxy.endpoint):
        proxy.cuts = cuts
        if cuts == 2:
            assert open_videos(url)[0].num_frames == 100 and proxy.done == 2
        else:
            with pytest.raises(OSError, match=rf"{url} could not be read in 3 tries"):
                _ = open_videos(url)[0].num_frames
    proxy.close()


def test_workers_read_from_a_bucket(s3: str, folder: Path) -> None:
    """They make connections of their own."""
    url = put_folder(folder, f"{s3}/workers")
    settings: dict[str, Any] = {"clip_length": 3, "height": 16, "width": 16, "batch_size": 1, "skip_short": True}
    batches = []
    for entry in (url, str(folder)):
        module = VideoDataModule(VideoDataConfig(train=(entry,), num_workers=2, **settings))
        module.setup("fit")
        batches.append(torch.cat([batch.video for batch in module.train_dataloader()]))
    assert torch.equal(*batches)


def test_training_windows_come_from_a_bucket(s3: str, folder: Path, tmp_path: Path) -> None:
    url, here = f"{s3}/stores/windows", tmp_path / "here"
    for output in (url, here):
        write_store(tiny_adapter(), open_episodes(folder), output, root=folder)
    batches = []
    for store in (url, str(here)):
        module = TokenDataModule(
            TokenDataConfig(store=store, validation="train", window_steps=2, batch_size=2, num_workers=1)
        )
        module.setup("fit")
        batches.append([batch["codes"].tolist() for batch in module.train_dataloader()])
    assert batches[0] == batches[1] and batches[0]


def test_store_written_to_a_bucket_equals_a_local_one(s3: str, folder: Path, tmp_path: Path) -> None:
    url = f"{s3}/stores/equal"
    episodes, adapter = open_episodes(folder), tiny_adapter()
    there = write_store(adapter, episodes, url, root=folder, episodes_per_shard=2)
    here = write_store(adapter, episodes, tmp_path / "here", root=folder, episodes_per_shard=2)
    assert [name for name, _ in windows(there)] == ["a.mp4", "b.mp4", "c/d.mp4"]
    assert windows(there) == windows(here)
    fs = fsspec.filesystem("s3")
    objects = {name.partition("equal/")[2]: fs.cat_file(name) for name in fs.find(url)}
    assert objects == contents(tmp_path / "here")
    assert check_store(url) == check_store(tmp_path / "here")
    assert not check_store(url).problems


def test_opening_a_store_reads_headers_and_windows_their_shards(s3: str, folder: Path, cache: Path) -> None:
    url = f"{s3}/stores/lazy"
    write_store(tiny_adapter(), open_episodes(folder), url, episodes_per_shard=1)
    store = TokenStore(url)
    assert not list(cache.rglob("copies/**/*.safetensors"))
    store.window(1, 0, 2)
    assert len(list(cache.rglob("copies/**/*.safetensors"))) == 1


def test_readers_never_see_a_part(s3: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each object that is written: no store yet, or one whose episodes can all be read."""
    url, seen = f"{s3}/stores/parts", []

    def watched(where: str, content: Path | bytes) -> None:
        remote.upload(where, content)
        if fsspec.filesystem("s3").exists(f"{url}/store.json"):
            try:
                store = TokenStore(url)
            except FileNotFoundError as error:  # no shard yet
                assert "no shard has been written yet" in str(error)
                return
            assert not check_store(url).problems
            seen.append((store.metadata.token_hash, len(windows(store))))

    monkeypatch.setattr(staging, "upload", watched)
    episodes, first, second = open_episodes(folder), tiny_adapter(0), tiny_adapter(1)
    write_store(first, episodes[:2], url, root=folder, episodes_per_shard=1)
    write_store(first, episodes, url, root=folder, episodes_per_shard=1)
    write_store(second, episodes, url, root=folder, episodes_per_shard=1, update=True)
    assert seen[0] == (first.token_hash, 2) and seen[-1] == (second.token_hash, 3)
    assert set(seen) == {(first.token_hash, 2), (first.token_hash, 3), (second.token_hash, 3)}
    assert seen == sorted(seen, key=lambda entry: (entry[0] == second.token_hash, entry[1]))
    names = fsspec.filesystem("s3").find(url)
    assert not [name for name in names if first.token_hash[:16] in name] and not check_store(url).problems


def test_interrupted_upload_is_continued(
    s3: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, uploads = f"{s3}/stores/interrupted", []
    episodes, adapter = open_episodes(folder), tiny_adapter()

    def failing(where: str, content: Path | bytes) -> None:
        uploads.append(where)
        if len(uploads) == 4:
            raise OSError(f"{where} could not be written")
        remote.upload(where, content)

    monkeypatch.setattr(staging, "upload", failing)
    with pytest.raises(OSError, match="could not be written"):
        write_store(adapter, episodes, url, root=folder)
    before = [*uploads]
    store = write_store(adapter, episodes, url, root=folder)
    assert len(store) == 3 and not check_store(url).problems
    assert set(before[:3]).isdisjoint(uploads[4:])


def test_another_machine_adds_to_a_store(
    s3: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/stores/machines"
    episodes, adapter = open_episodes(folder), tiny_adapter()
    write_store(adapter, episodes[:1], url, root=folder)
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "elsewhere"))
    assert len(write_store(adapter, episodes, url, root=folder)) == 3
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    assert len(write_store(adapter, episodes, url, root=folder)) == 3
    assert not check_store(url).problems


def test_models_and_worlds_are_loaded_from_a_bucket(s3: str, tmp_path: Path) -> None:
    world = put_folder(save_tiny_world(tmp_path / "world"), f"{s3}/world")
    model, adapter = load_world(world, device="cpu")
    assert model.token_hash == adapter.token_hash == tiny_adapter().token_hash
    assert TokenizerAdapter.from_pretrained(f"{world}/adapter").hash == adapter.hash
    tokenizer = VidTok.from_pretrained(f"{world}/adapter/tokenizer")
    own = adapter.tokenizer.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in tokenizer.state_dict().items())
    with pytest.raises(FileNotFoundError, match=f"{s3}/nothing"):
        load_world(f"{s3}/nothing", device="cpu")


def test_tokenize_from_a_bucket_into_a_bucket(
    s3: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    source, model = put_folder(folder, f"{s3}/episodes"), put_folder(tmp_path / "adapter", f"{s3}/adapter")
    assert main(["tokenize", source, "--model", model, "--output", f"{s3}/stores/cli"]) == 0
    assert f"{s3}/stores/cli: 3 episodes" in capsys.readouterr().out
    here = write_store(tiny_adapter(), open_episodes(folder), tmp_path / "here", root=folder)
    assert windows(TokenStore(f"{s3}/stores/cli")) == windows(here)
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", source, "--model", model, "--output", "s3://user:hunter2@bucket/a"])
    assert "hunter2" not in capsys.readouterr().err
