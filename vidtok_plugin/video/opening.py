"""Opening recordings of any kind: which files in a source are episodes, and what each is read by."""

import os
from collections.abc import Sequence
from pathlib import Path

from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.remote import listed
from vidtok_plugin.common.remote_cache import fetch_together
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.video.array_episode import has_frames, load_array_episode
from vidtok_plugin.video.array_files import ARRAY_SUFFIXES
from vidtok_plugin.video.cameras import Cameras
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.episodes import VIDEO_SUFFIXES, actions_path, files_below, find_videos, load_episode
from vidtok_plugin.video.lerobot.dataset import is_lerobot, open_lerobot
from vidtok_plugin.video.video_file import PNG, FramesOnly, PngFolder, VideoFile

BESIDE = (".npy", ".json", ".jsonl")  # read when episodes are opened
MAX_BESIDE = 1 << 20  # bytes of those that are fetched at the same time

Source = str | os.PathLike[str]


def open_episodes(source: Source, camera: Cameras | None = None) -> list[Episode]:
    """The episodes of a source, in order; frames are read only when they are asked for.

    source: the root of a LeRobot dataset; a video, `.npz` or HDF5 file; or a folder, with its subfolders, of episodes
        (videos with actions beside them) and videos, or of `.npz` and HDF5 episodes, or of PNG frames.
    camera: of a source with several cameras, the one to read; several, in a list or separated by commas, are one
        picture, side by side, with black below lower ones.

    Raises:
        FileNotFoundError: the source or one of its files does not exist, or there are no episodes.
        ValueError: a file is damaged, or its contents don't fit together; or the camera is unknown.

    Example:
        >>> episode = open_episodes("data/pusht", camera="observation.image")[3]   # doctest: +SKIP
        >>> episode.read(range(4)).shape, episode.actions.shape   # doctest: +SKIP
        ((4, 96, 96, 3), (90, 2))
    """
    return _open(user_path(source), camera, with_actions=True)


def open_videos(source: Source, camera: Cameras | None = None) -> list[Episode]:
    """The frames alone of the episodes of a source; actions beside videos are not even read. Errors as above."""
    return _open(user_path(source), camera, with_actions=False)


def has_cameras(source: Path) -> bool:
    """Whether episodes of a source may have several cameras."""
    if not source.is_dir():
        return source.suffix.lower() in ARRAY_SUFFIXES
    return is_lerobot(source) or bool(_array_files(source))


def _open(root: Path, camera: Cameras | None, *, with_actions: bool) -> list[Episode]:
    if not isinstance(root, UrlPath):
        return _opened(root, camera, with_actions)
    with listed(str(root)) as found:  # in place of a question for each file
        if with_actions:
            beside = [url for url, entry in found.items() if url.endswith(BESIDE) and entry.size <= MAX_BESIDE]
            fetch_together(beside)
        return _opened(root, camera, with_actions)


def _opened(root: Path, camera: Cameras | None, with_actions: bool) -> list[Episode]:
    if root.is_dir() and is_lerobot(root):
        return _frames_of(open_lerobot(root, camera), with_actions)
    if root.suffix.lower() in ARRAY_SUFFIXES and not root.is_dir():
        return _frames_of([load_array_episode(root, camera=camera)], with_actions)
    if root.is_file():
        if root.suffix.lower() not in VIDEO_SUFFIXES:
            known = ", ".join((*VIDEO_SUFFIXES, *ARRAY_SUFFIXES))
            raise ValueError(f"{root} must be a folder, or a file that ends in one of {known}; choose another.")
        _check_no_camera(root, camera)
        return [_video(root, root.name, with_actions)]
    arrays = _array_files(root)
    if arrays:
        named = [(path, path.relative_to(root).as_posix()) for path in arrays]
        return _frames_of([load_array_episode(path, name, camera) for path, name in named], with_actions)
    _check_no_camera(root, camera)
    folders = _png_folders(root)
    if folders:
        return [PngFolder(path=path, name=_name(path, root)) for path in folders]
    return [_video(path, path.relative_to(root).as_posix(), with_actions) for path in find_videos(root)]


def _frames_of(episodes: Sequence[Episode], with_actions: bool) -> list[Episode]:
    return list(episodes) if with_actions else [FramesOnly(episode=episode) for episode in episodes]


def _video(path: Path, name: str, with_actions: bool) -> Episode:
    if with_actions and actions_path(path).exists():
        return load_episode(path, name)
    return VideoFile(path=path, name=name)


def _array_files(root: Path) -> list[Path]:
    """The `.npz` and HDF5 episodes in a folder; none if the first is no episode and there are videos."""
    if not root.is_dir():
        return []
    files = [path for path in files_below(root) if not path.name.startswith(".")]
    arrays = sorted(path for path in files if path.suffix.lower() in ARRAY_SUFFIXES)
    videos = any(path.suffix.lower() in VIDEO_SUFFIXES for path in files)
    return arrays if arrays and (not videos or has_frames(arrays[0])) else []


def _png_folders(root: Path) -> list[Path]:
    """The folders with PNG frames, if there are no videos."""
    if not root.is_dir():
        return []
    folders = set()
    for path in files_below(root):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return []
        if path.suffix.lower() == PNG and not path.name.startswith("."):
            folders.add(path.parent)
    return sorted(folders)


def _name(folder: Path, root: Path) -> str:
    return root.resolve().name if folder == root else folder.relative_to(root).as_posix()


def _check_no_camera(root: Path, camera: Cameras | None) -> None:
    if camera is not None:
        raise ValueError(f"{root} has no cameras to choose from, got camera {camera!r}; leave camera out.")
