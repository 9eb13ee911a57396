"""Finding videos and recorded episodes: a video with files of actions and rewards and a JSON beside it."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.checkpoint_files import DAMAGE
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.video.episode_meta import check_meta, read_meta

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One continuous recording.

    `actions` is int64 `(t,)` or float32 `(t, a)`; `actions[i]` led from frame i-1 to frame i, and `actions[0]` is
    ignored. `rewards` is float32 `(t,)`, or None if it has none; `rewards[i]` came with frame i. `meta` is the JSON
    beside the video: `fps`, `num_frames`, `action_space`, `terminated` and how it was recorded.
    """

    path: Path
    actions: np.ndarray
    meta: Mapping[str, Any]
    rewards: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    @property
    def terminated(self) -> bool | None:
        """Whether its last frame ended the task or game; None if the JSON does not say so."""
        return self.meta.get("terminated")


def actions_path(video: str | os.PathLike[str]) -> Path:
    """`clip.actions.npy` of `clip.mp4`."""
    return Path(video).with_suffix(".actions.npy")


def rewards_path(video: str | os.PathLike[str]) -> Path:
    """`clip.rewards.npy` of `clip.mp4`."""
    return Path(video).with_suffix(".rewards.npy")


def meta_path(video: str | os.PathLike[str]) -> Path:
    """`clip.json` of `clip.mp4`."""
    return Path(video).with_suffix(".json")


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """All videos in a folder and its subfolders, sorted, without hidden files and folders.

    Links to folders are followed, each folder once.

    Raises:
        FileNotFoundError: the folder does not exist, or has no videos.
        NotADirectoryError: it is a file.
    """
    root = user_path(folder)
    if not root.exists():
        raise FileNotFoundError(f"Folder {folder} doesn't exist; check the path, or record or copy videos there.")
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder; give the folder that contains it.")
    paths = sorted(
        path
        for path in _files(root)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    if not paths:
        raise FileNotFoundError(
            f"Folder {folder} has no videos: no file in it or its subfolders ends in {', '.join(VIDEO_SUFFIXES)}."
        )
    return paths


def _files(root: Path) -> Iterator[Path]:
    """The files below a folder, and below the folders that it links to, without hidden folders."""
    return (Path(folder, name) for folder, files in walk_once(root) for name in files)


def walk_once(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `root` on, also through links, with the names of its files; none twice, and none hidden."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    around = [os.path.realpath(root), *map(str, Path(os.path.realpath(root)).parents)]
    starts = [root]
    while starts:  # a folder's own place comes before links to it
        links: list[Path] = []
        for start in starts:
            if start is not root and os.path.realpath(start) in around:  # a loop
                continue
            for folder, names, files in os.walk(start, onerror=fail):
                real = os.path.realpath(folder)
                if real in seen:
                    names.clear()
                    continue
                seen.add(real)
                names[:] = [name for name in sorted(names) if not name.startswith(".")]
                links += [Path(folder, name) for name in names if os.path.islink(Path(folder, name))]
                yield folder, files
        starts = links


def find_episodes(folder: str | os.PathLike[str]) -> list[Episode]:
    """All episodes in a folder and its subfolders, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or has no videos, or a video lacks its actions or JSON.
        ValueError: actions or JSON are invalid.
    """
    return [load_episode(path) for path in find_videos(folder)]


def load_episode(path: str | os.PathLike[str]) -> Episode:
    """The episode of one video file."""
    video = Path(path)
    for file in (actions_path(video), meta_path(video)):
        if not file.is_file():
            raise FileNotFoundError(
                f"Episode {video} has no {file.name} beside it; finish recording it, write the file, or move the video"
                " elsewhere."
            )
    meta = read_meta(video)
    actions = load_array(actions_path(video), f"Episode {video}")
    _check_actions(video, actions, meta)
    rewards = load_array(rewards_path(video), f"Episode {video}") if rewards_path(video).is_file() else None
    if rewards is not None:
        _check_rewards(video, rewards, len(actions))
        rewards = np.ascontiguousarray(rewards, dtype=np.float32)
    return Episode(path=video, actions=as_torch_reads_them(actions), meta=meta, rewards=rewards)


def load_array(path: Path, who: str) -> np.ndarray:
    """The array in a file of actions or rewards, as it was written; a ValueError that begins with `who` if it cannot
    be read."""
    try:
        with open(path, "rb") as file:  # np.load would leave an archive open
            loaded = np.load(file, allow_pickle=False)
    except (*DAMAGE, ArithmeticError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{who}: {path.name} cannot be read ({error}); record the episode again, or write the file with numpy.save."
        ) from None
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{who}: {path.name} must be one array, got an archive of several; write it with numpy.save.")
    return loaded


def as_torch_reads_them(actions: np.ndarray) -> np.ndarray:
    """Integers as int64 and floats as float32, in this machine's byte order."""
    kind = np.int64 if np.issubdtype(actions.dtype, np.integer) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # actions[0] may be anything
        return np.ascontiguousarray(actions, dtype=kind)


def save_episode_files(
    video: str | os.PathLike[str], actions: np.ndarray, meta: Mapping[str, Any], rewards: np.ndarray | None = None
) -> None:
    """Writes actions, rewards and then the JSON beside a complete video; the JSON marks the episode as complete."""
    _check_actions(Path(video), actions, meta)
    arrays = {actions_path(video): actions}
    if rewards is not None:
        _check_rewards(Path(video), rewards, len(actions))
        arrays[rewards_path(video)] = rewards.astype(np.float32)
    with ExitStack() as files:  # they get their names at its end, the JSON last
        files.enter_context(atomic_write(meta_path(video))).write_text(
            json.dumps(meta, indent=2) + "\n", encoding="utf-8"
        )
        for path, array in arrays.items():
            with files.enter_context(atomic_write(path)).open("wb") as file:
                np.save(file, array)


def _check_actions(video: Path, actions: np.ndarray, meta: Mapping[str, Any]) -> None:
    name = actions_path(video).name
    discrete = actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer)
    continuous = actions.ndim == 2 and np.issubdtype(actions.dtype, np.floating)
    if not (discrete or continuous):
        raise ValueError(
            f"Episode {video}: {name} must be integers of shape (t,) or floats of shape (t, a),"
            f" got {actions.dtype} of {actions.shape}; write it with numpy.save."
        )
    check_meta(video, meta, actions)
    if "num_frames" in meta and len(actions) != meta["num_frames"]:
        raise ValueError(
            f"Episode {video}: {name} must have one action for each frame, got {len(actions)} for"
            f" {meta['num_frames']} frames; record the episode again, or correct num_frames in {meta_path(video).name}."
        )
    size = meta.get("action_space", {}).get("size") or 2**63
    used = actions[1:]  # actions[0] is ignored
    if discrete and len(used) and not 0 <= used.min() <= used.max() < size:
        frame = int(np.argmax((used < 0) | (used >= size))) + 1
        raise ValueError(
            f"Episode {video}: {name} must have actions in 0..{size - 1}, according to its action_space,"
            f" got {actions[frame]} at frame {frame}; record it again, or correct the action."
        )
    if continuous:
        with np.errstate(over="ignore"):
            finite = np.isfinite(used.astype(np.float32)).all(axis=1)
        if not finite.all():
            frame = int(np.argmin(finite)) + 1
            raise ValueError(
                f"Episode {video}: {name} must have actions that are finite in float32, got {actions[frame]} at frame"
                f" {frame}; record it again, or correct the action."
            )


def _check_rewards(video: Path, rewards: np.ndarray, frames: int) -> None:
    name = rewards_path(video).name
    if rewards.shape != (frames,) or rewards.dtype.kind not in "iuf":
        raise ValueError(
            f"Episode {video}: {name} must be numbers of shape ({frames},), one for each frame, got {rewards.dtype} of "
            f"{rewards.shape}; record it again, or remove the file."
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(rewards.astype(np.float32))
    if not finite.all():
        frame = int(np.argmin(finite))
        raise ValueError(
            f"Episode {video}: {name} must have rewards that are finite in float32, got {rewards[frame]} at frame"
            f" {frame}; record it again, or correct the reward."
        )
