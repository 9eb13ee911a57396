"""LeRobot datasets on the Hugging Face hub: the files of the chosen cameras are downloaded; none of them is run."""

import glob
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from vidtok_plugin.common.downloads import hub_errors
from vidtok_plugin.video.cameras import Cameras, choose_cameras
from vidtok_plugin.video.lerobot.dataset import INFO, Info

META = "meta/*"
WHO = "LeRobot dataset"


def download_dataset(repository: str, camera: Cameras | None = None) -> Path:
    """The local root of a dataset on the hub, in the hub's cache, for `open_episodes` with the same camera.

    repository: `user/name`, or `user/name@revision` with a branch, tag or commit.

    Raises:
        FileNotFoundError: the download failed, or it is no LeRobot dataset.
        OSError: the hub's cache cannot be written.
        ValueError: the name is not valid, there is no such revision, or the camera is unknown.

    Example:
        >>> episodes = open_episodes(download_dataset("lerobot/pusht"))   # doctest: +SKIP
    """
    name, _, revision = repository.partition("@")
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", name):
        raise ValueError(f"{WHO}: the repository must be USER/NAME or USER/NAME@REVISION, got {repository!r}.")
    root = _download(name, revision or None, [META])
    if not (root / INFO).is_file():
        raise FileNotFoundError(f"{WHO}: {repository} on the hub has no {INFO.as_posix()}; choose another repository.")
    info = Info(root)
    cameras = choose_cameras(camera, info.cameras, f"{WHO} {repository}")
    patterns = [META, _pattern(info, "data_path"), *(_pattern(info, "video_path", key) for key in cameras)]
    return _download(name, root.name, patterns)  # of the same commit, which the cache's folder is named by


def _pattern(info: Info, which: str, camera: str = "") -> str:
    """The files that `data_path` or `video_path` stands for, in the hub's patterns, whose `*` also matches slashes."""
    parts = re.split(r"\{([^}]*)\}", info.values[which])  # text and names take turns
    named = ["*" if index % 2 else glob.escape(part) for index, part in enumerate(parts)]
    for index in range(1, len(parts), 2):
        if parts[index].partition(":")[0] == "video_key":
            named[index] = glob.escape(camera)
    return "".join(named)


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    failed = (
        f"{WHO}: {repository} could not be downloaded from the hub ({{cause}}); check the name and the connection, or "
        "download it by other means and give its folder."
    )
    with hub_errors(WHO, repository, revision, failed):
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns))
