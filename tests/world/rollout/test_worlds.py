"""load_world: a world by its shipped name, from a folder or from the hub, complete or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RevisionNotFoundError
from recordings import tiny_adapter
from world_models import save_tiny_world

from vidtok_plugin.video.episodes import load_episode
from vidtok_plugin.video.reading import probe
from world_model import WorldModel, load_world
from world_model.rollout import worlds


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("worlds") / "user" / "small")


def test_a_folder_is_loaded_with_its_adapter(saved: Path) -> None:
    model, adapter = load_world(saved, device="cpu")
    assert model.token_hash == adapter.token_hash and not model.training and model.device.type == "cpu"
    assert torch.equal(model.step_inputs.place, WorldModel.from_pretrained(saved).step_inputs.place)


def test_a_folder_comes_before_a_repository_of_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # a call would fail
    model, _ = load_world("user/small", device="cpu")
    assert model.config.transformer.width == 24


def test_failed_downloads_name_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Callable[[], Exception]) -> Callable[..., str]:
        def download(*_: Any, **__: Any) -> str:
            raise error()

        return download

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(lambda: OSError("no network")))
    with pytest.raises(FileNotFoundError, match="no such repository could be downloaded .*check the name"):
        load_world("someone/small")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(lambda: KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        load_world("someone/small")

    def no_revision() -> Exception:
        error = RevisionNotFoundError.__new__(RevisionNotFoundError)
        Exception.__init__(error, "no revision")
        return error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(no_revision))
    with pytest.raises(ValueError, match="no revision 'v9'; leave revision out"):
        load_world("someone/small", revision="v9")


def test_prompts_come_with_a_world(saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match="small has no prompts; give a video of your own"):
        worlds.world_prompts(saved)
    prompt = worlds.world_prompts("boxing")[0]
    episode = load_episode(prompt)
    assert episode.num_frames == probe(prompt).num_frames > 13


@pytest.mark.parametrize(
    ("source", "revision", "error", "message"),
    [
        ("boxin", None, ValueError, "no folder or shipped world 'boxin'; the nearest shipped world is 'boxing'"),
        ("runs/none/model", None, FileNotFoundError, "there is no folder runs/none/model; check the path"),
        ("some one/small", None, ValueError, "some one/small is no folder, and not a valid name of a hub repository"),
        ("boxing", "v2", ValueError, "revision='v2' is for hub repositories, and boxing is none; leave it out"),
    ],
)
def test_unknown_worlds_are_refused(source: str, revision: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_world(source, revision=revision)


def test_a_model_without_its_adapter_or_with_another_one_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "adapter")
    with pytest.raises(FileNotFoundError, match="has a world model but no adapter; save both"):
        load_world(tmp_path / "alone")
    shutil.copytree(saved, tmp_path / "mixed")
    tiny_adapter(seed=1).save_pretrained(tmp_path / "mixed" / "adapter")
    with pytest.raises(ValueError, match="the adapter must have the token hash that the model was trained on"):
        load_world(tmp_path / "mixed")
