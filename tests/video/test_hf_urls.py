"""Datasets on a Hugging Face hub: read by hf:// URLs, and downloaded by name."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hub_server import COMMIT, hub_server
from huggingface_hub import constants, file_download
from lerobot_datasets import write_lerobot

from vidtok_plugin import open_episodes
from vidtok_plugin.common import remote
from vidtok_plugin.video.lerobot.hub import download_dataset

CAMERAS = {"front": (16, 16), "wrist": (16, 32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The dataset that the hub has as lab/arm."""
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", ())
    dataset = write_lerobot(tmp_path / "hub" / "lab" / "arm", [5, 4], cameras=CAMERAS).root
    with hub_server(tmp_path / "hub") as address:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        for module in (constants, file_download):  # the oldest client has a name of its own for it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield dataset
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_dataset_is_read_by_its_url(folder: Path, tmp_path: Path) -> None:
    there = open_episodes("hf://datasets/lab/arm", "wrist")
    for here, episode in zip(open_episodes(folder, "wrist"), there, strict=True):
        np.testing.assert_array_equal(episode.read(range(4)), here.read(range(4)))
        np.testing.assert_array_equal(episode.actions, here.actions)
        assert episode.digest() == here.digest()
    assert len(list((tmp_path / "cache").rglob("*.mp4"))) == 1  # of one of the cameras
    with pytest.raises(OSError, match="hf://datasets/lab/none"):
        open_episodes("hf://datasets/lab/none")


def test_a_dataset_is_downloaded_without_other_cameras(folder: Path, tmp_path: Path) -> None:
    root = download_dataset("lab/arm", "front")
    assert root.name == COMMIT and root.is_relative_to(tmp_path / "hf")
    assert [path.parts[-3] for path in root.rglob("*.mp4")] == ["front"]
    (episode, _), (here, _) = open_episodes(root, "front"), open_episodes(folder, "front")
    np.testing.assert_array_equal(episode.read(range(5)), here.read(range(5)))
    with pytest.raises(FileNotFoundError, match=r"lab/none could not be downloaded"):
        download_dataset("lab/none")
