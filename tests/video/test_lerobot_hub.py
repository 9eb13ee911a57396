"""LeRobot datasets on the hub: the files of the chosen cameras come, of one commit, and nothing leads out of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from lerobot_datasets import write_lerobot
from recordings import tiny_adapter
from world_models import save_tiny_world

from vidtok_plugin import open_episodes
from vidtok_plugin.cli import main
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.lerobot import hub
from vidtok_plugin.video.lerobot.hub import download_dataset
from vidtok_plugin.video.reading import probe
from world_model.cli import main as world_model

COMMIT = "0123abcd" * 5


class Hub:
    """Serves datasets from a folder, as the hub's client does, and notes what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache" / "snapshots" / COMMIT
        self.asked: list[tuple[str, str, str | None]] = []

    def snapshot_download(
        self, repository: str, *, repo_type: str, revision: str | None, allow_patterns: Sequence[str]
    ) -> str:
        self.asked.append((repository, repo_type, revision))
        root = self.folder / repository
        if not root.is_dir():
            raise ConnectionError("no such repository")
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=list(allow_patterns)):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, self.cache / name)
        self.cache.mkdir(parents=True, exist_ok=True)
        return str(self.cache)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    serving = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "snapshot_download", serving.snapshot_download)
    return serving


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_only_the_chosen_camera_is_downloaded(served: Hub, version: str) -> None:
    cameras = {"images.front": (32, 48), "images.wrist": (16, 32)}
    root = served.folder / "lab" / "arm"
    write_lerobot(root, [5, 4], version=version, cameras=cameras)
    there = open_episodes(download_dataset("lab/arm", "images.wrist"), "images.wrist")
    for here, episode in zip(open_episodes(root, "images.wrist"), there, strict=True):
        np.testing.assert_array_equal(episode.read(range(4)), here.read(range(4)))
        np.testing.assert_array_equal(episode.actions, here.actions)
    videos = {str(path.relative_to(served.cache)) for path in served.cache.rglob("*.mp4")}
    assert videos and all("images.wrist" in name for name in videos)
    assert served.asked == [("lab/arm", "dataset", None), ("lab/arm", "dataset", COMMIT)]
    with pytest.raises(ValueError, match=r"lab/arm has 2 cameras: images\.front, images\.wrist; choose"):
        download_dataset("lab/arm")


def test_a_revision_may_be_named(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(served.folder / "lab" / "arm", [5])
    download_dataset("lab/arm@v2")
    assert [revision for _, _, revision in served.asked] == ["v2", COMMIT]

    def unknown(*_: Any, **__: Any) -> str:
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(hub, "snapshot_download", unknown)
    with pytest.raises(ValueError, match="has no revision 'v3'"):
        download_dataset("lab/arm@v3")


def test_what_cannot_be_downloaded_is_one_sentence(served: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=r"lab/none could not be downloaded from the hub \(ConnectionError\)"):
        download_dataset("lab/none")
    with pytest.raises(ValueError, match=r"must be USER/NAME or USER/NAME@REVISION, got 'arm'"):
        download_dataset("arm")
    (served.folder / "lab" / "texts").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"lab/texts on the hub has no meta/info\.json"):
        download_dataset("lab/texts")


@pytest.mark.parametrize("pattern", ["/etc/{episode_index}", "../../{episode_index}.mp4"])
@pytest.mark.parametrize("which", ["data_path", "video_path"])
def test_a_dataset_names_no_files_outside_of_it(tmp_path: Path, which: str, pattern: str) -> None:
    root = write_lerobot(tmp_path / "arm", [5], version="v2.1").root
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, which: pattern}))
    with pytest.raises(ValueError, match=rf"{which} must lead to files of the dataset, got .*download or write"):
        open_episodes(root)


def test_commands_take_a_repository(served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lerobot(served.folder / "lab" / "arm", [9, 13], discrete=True)
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    model = ["--model", str(tmp_path / "adapter")]
    assert main(["tokenize", "--repo", "lab/arm", *model, "--output", str(tmp_path / "tokens")]) == 0
    assert [episode.frames for episode in TokenStore(tmp_path / "tokens").episodes] == [9, 13]
    assert main(["tokenize", *model, "--output", str(tmp_path / "tokens")]) == 2
    assert "give either a folder of recordings or --repo USER/NAME, got neither" in capsys.readouterr().err
    assert main(["tokenize", str(tmp_path), "--repo", "lab/arm", *model, "--output", str(tmp_path / "tokens")]) == 2
    assert "got both" in capsys.readouterr().err


@pytest.mark.slow
def test_rollout_continues_an_episode_of_a_repository(
    served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = ["rollout", "--model", str(save_tiny_world(tmp_path / "world")), "--output", str(tmp_path / "out.mp4")]
    assert world_model([*world, "--repo", "lab/arm", "--prompt", str(tmp_path)]) == 2
    assert "either --prompt or --repo" in capsys.readouterr().err
    write_lerobot(served.folder / "lab" / "arm", [9, 13], discrete=True, cameras={"image": (16, 16)})
    np.save(tmp_path / "actions.npy", np.zeros(13, np.int64))
    chosen = ["--repo", "lab/arm", "--episode", "1", "--prompt-frames", "5", "--frames", "8"]
    assert world_model([*world, *chosen, "--actions", str(tmp_path / "actions.npy")]) == 0, capsys.readouterr().err
    assert probe(tmp_path / "out.mp4").num_frames == 13
