"""Recordings of several sizes and rates become one store, whose settings are part of what it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_episode
from stores import METADATA, PATCHES

from vidtok_plugin import open_episodes
from vidtok_plugin.cli import main
from vidtok_plugin.store.metadata import METADATA_FILE, StoreMetadata, read_metadata
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.preparation import Preparation


def noise(path: Path, total: int, size: tuple[int, int], fps: float, **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    frames = np.random.default_rng(total).integers(0, 256, (total, *size, 3), dtype=np.uint8)
    np.savez(path, frames=frames, fps=fps, **more)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> list[Episode]:
    """Three sizes, of which only the first fits the tokenizer, and three rates."""
    folder = tmp_path / "mixed"
    for name, total, size, fps in (("a", 9, (16, 16), 10), ("b", 17, (30, 41), 20), ("c", 25, (12, 9), 30)):
        noise(folder / f"{name}.npz", total, size, fps, actions=np.full((total, 1), 0.5, np.float32))
    return open_episodes(folder)


def test_recordings_of_several_sizes_and_rates_are_one_store(mixed: list[Episode], tmp_path: Path) -> None:
    adapter = tiny_adapter()
    settings: dict[str, Any] = {"size": (16, 24), "fit": "pad", "fps": 10, "group_actions": "sum"}
    store = write_store(adapter, mixed, tmp_path / "store", **settings)
    assert (store.metadata.height, store.metadata.width, store.metadata.fps) == (2, 3, 10)
    assert store.metadata.preparation == {"size": [16, 24], "fit": "pad", "fps": 10.0, "group_actions": "sum"}
    assert [episode.frames for episode in store.episodes] == [9, 9, 9]
    for index, (episode, stride) in enumerate(zip(mixed, (1, 2, 3), strict=True)):
        prepared = Preparation(**settings).of(episode)
        video = torch.from_numpy(prepared.read(range(9))).permute(3, 0, 1, 2)[None]
        window = store.window(index, 0, 3)
        assert torch.equal(window["codes"].flatten(), adapter.encode(video).ids[0])
        assert window["actions"][1:].flatten().tolist() == [0.5 * stride] * 8


def test_without_settings_several_sizes_and_rates_are_refused_with_a_remedy(
    mixed: list[Episode], tmp_path: Path
) -> None:
    adapter = tiny_adapter()
    with pytest.raises(ValueError, match=r"height must be a multiple of 8 .*b\.npz; .*--size H W"):
        write_store(adapter, mixed, tmp_path / "store")
    noise(tmp_path / "large" / "d.npz", 9, (24, 16), 10, actions=np.zeros((9, 1), np.float32))
    with pytest.raises(ValueError, match=r"height must be the same .*2, got 3 of d\.npz; .*--size H W"):
        write_store(adapter, [mixed[0], *open_episodes(tmp_path / "large")], tmp_path / "store")
    with pytest.raises(ValueError, match=r"fps must be the same .*10.0, got 20.0 of b\.npz; .*--fps R"):
        write_store(adapter, mixed[:2], tmp_path / "store", size=(16, 16))
    settings: dict[str, Any] = {"size": (16, 16), "fps": 10, "group_actions": "sum"}
    assert len(write_store(adapter, mixed, tmp_path / "store", **settings)) == 3  # nothing was written before


def test_a_store_is_extended_with_the_same_settings_only(mixed: list[Episode], tmp_path: Path) -> None:
    adapter = tiny_adapter()
    settings: dict[str, Any] = {"size": (16, 16), "fps": 10, "group_actions": "sum"}
    write_store(adapter, mixed[:2], tmp_path, **settings)
    for other in ({}, {"fit": "stretch"}, {"fps": 5}):
        changed = {**settings, **other} if other else {}
        with pytest.raises(ValueError, match="preparation must be the same throughout a store.* or give the same size"):
            write_store(adapter, mixed[:1], tmp_path, **changed)
    assert len(write_store(adapter, mixed, tmp_path, **settings, fit="crop")) == 3


def test_a_store_that_was_written_without_settings_is_not_extended_with_them(tmp_path: Path) -> None:
    adapter = tiny_adapter()
    noise(tmp_path / "a" / "a.npz", 9, (16, 16), 10)
    noise(tmp_path / "b" / "b.npz", 9, (16, 16), 10)
    write_store(adapter, open_episodes(tmp_path / "a"), tmp_path / "store")
    with pytest.raises(ValueError, match="preparation must be the same throughout a store, None, got"):
        write_store(adapter, open_episodes(tmp_path / "b"), tmp_path / "store", size=(16, 16))


def test_metadata_without_settings_is_as_it_was_before_they_existed() -> None:
    """Else earlier stores would have another name for their tokens, and could not be opened."""
    assert (METADATA.tokens_folder, PATCHES.tokens_folder) == ("tokens_9a32ebc5a244617c", "tokens_a434d4059731f51e")
    values = json.loads(METADATA.to_json())
    assert "preparation" not in values
    assert values["checksum"] == "f47ef047fd85cfd6726ae25e2b285ec0eab7ccab62238cefdbb34bec9dc0a1d3"
    assert StoreMetadata.from_json(values).tokens_folder == METADATA.tokens_folder


@pytest.mark.parametrize("value", [{}, {"size": [16, 16]}, {"size": 3, "fit": "crop"}, {"scale": 2}, "crop"])
def test_damaged_settings_of_a_store_are_named(value: Any, tmp_path: Path) -> None:
    values = {**json.loads(METADATA.to_json()), "preparation": value}
    del values["checksum"]
    (tmp_path / METADATA_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"store\.json is damaged .*reparation"):
        read_metadata(tmp_path)


def test_the_command_takes_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episode(tmp_path / "videos" / "a.mp4", 17, size=24)
    write_episode(tmp_path / "videos" / "b.mp4", 33, size=16, fps=60)
    tiny_adapter().save_pretrained(tmp_path / "model")
    store = tmp_path / "store"
    command = ["tokenize", str(tmp_path / "videos"), "--model", str(tmp_path / "model"), "--output", str(store)]
    assert main(command) == 2 and "--size H W" in capsys.readouterr().err
    settings = ["--size", "16", "16", "--fit", "stretch", "--fps", "15", "--clip-frames", "5", "--processes", "1"]
    assert main([*command, *settings]) == 2
    assert "action_space must be the same throughout a store" in capsys.readouterr().err  # 2 and 4 actions a frame
    (tmp_path / "videos" / "b.mp4").unlink()
    assert main([*command, *settings]) == 0
    metadata = read_metadata(store)
    assert metadata.preparation == {"size": [16, 16], "fit": "stretch", "fps": 15.0, "group_actions": "concatenate"}
    assert (metadata.action_space["kind"], metadata.action_space["size"]) == ("mixed", 2) and metadata.clip_frames == 5
    assert [(e.first_frame, e.frames) for e in TokenStore(store).episodes] == [(0, 5), (4, 5)]
