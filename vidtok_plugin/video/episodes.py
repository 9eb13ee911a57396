"""Finding videos and recorded episodes: a video with files of actions, rewards and state and a JSON beside it."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.damage import DAMAGE
from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.common.paths import as_path, user_path
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.video.action_space import kind_and_size
from vidtok_plugin.video.episode import EpisodeMethods
from vidtok_plugin.video.episode_meta import check_meta, frame_rate, read_meta
from vidtok_plugin.video.pyav_reader import Fit
from vidtok_plugin.video.reading import ReaderPool
from vidtok_plugin.video.signals import (
    as_torch_reads_them,
    check_action_count,
    check_action_kind,
    check_action_values,
    check_rewards,
    check_state,
    described_actions,
)
from vidtok_plugin.video.video_file import VideoFile

FIX_ACTIONS = "record it again, or correct the action"
FIX_REWARDS = FIX_STATE = "record it again, or correct or remove the file"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedEpisode(EpisodeMethods):
    """The episode of a video with actions beside it.

    `meta` is the JSON beside the video: `fps`, `num_frames`, `action_space`, `terminated`, `task` and how it was
    recorded.
    """

    path: Path
    name: str
    actions: np.ndarray
    meta: Mapping[str, Any]
    rewards: np.ndarray | None = None
    state: np.ndarray | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def video(self) -> VideoFile:
        """Its frames alone."""
        return VideoFile(path=self.path, name=self.name)

    @property
    def num_frames(self) -> int:
        return len(self.actions)

    @property
    def fps(self) -> float | None:
        return float(self.meta["fps"]) if "fps" in self.meta else None

    def frame_rate(self) -> float:
        return frame_rate(self.path, self.meta)

    @property
    def size(self) -> tuple[int, int]:
        return self.video.size

    @property
    def terminated(self) -> bool | None:
        """Whether its last frame ended the task or game; None if the JSON does not say so."""
        return self.meta.get("terminated")

    @property
    def task(self) -> str | None:
        return self.meta.get("task")

    @property
    def action_space(self) -> Mapping[str, Any]:
        space = {name: value for name, value in self.meta.get("action_space", {}).items() if value is not None}
        if "space" in space:
            kind, size = kind_and_size(space["space"])
            return {**space, "kind": kind, "size": size}
        if self.actions.ndim == 1:
            return {**space, "kind": "discrete"}
        return {**space, "kind": "continuous", "size": self.actions.shape[1]}

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        if self.video.num_frames != self.num_frames:
            raise ValueError(
                f"Episode {self}: it must have one action for each frame, got {self.num_frames} actions for "
                f"{self.video.num_frames} frames; record it again, or correct {actions_path(self.path).name}."
            )
        return self.video.read(frames, fit=fit, pool=pool)

    def blocks(self, length: int) -> Iterator[np.ndarray]:
        return self.video.blocks(length)

    def times(self) -> np.ndarray:
        return self.video.times()

    def frames_digest(self) -> str:
        return self.video.frames_digest()

    def digest_without_state(self) -> str:
        """SHA-256 of its files, and of whether it ended if its JSON says so."""
        files = [self.path, actions_path(self.path)]
        digest = hash_files(*files) if self.rewards is None else hash_files(*files, rewards_path(self.path))
        if self.terminated is None:
            return digest
        return hashlib.sha256(f"{digest} terminated={self.terminated}".encode()).hexdigest()

    def name_from(self, root: Path | None) -> str:
        return self.video.name_from(root)


def actions_path(video: str | os.PathLike[str]) -> Path:
    """`clip.actions.npy` of `clip.mp4`."""
    return as_path(video).with_suffix(".actions.npy")


def rewards_path(video: str | os.PathLike[str]) -> Path:
    """`clip.rewards.npy` of `clip.mp4`."""
    return as_path(video).with_suffix(".rewards.npy")


def state_path(video: str | os.PathLike[str]) -> Path:
    """`clip.state.npy` of `clip.mp4`."""
    return as_path(video).with_suffix(".state.npy")


def meta_path(video: str | os.PathLike[str]) -> Path:
    """`clip.json` of `clip.mp4`."""
    return as_path(video).with_suffix(".json")


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
        for path in files_below(root)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    if not paths:
        raise FileNotFoundError(
            f"Folder {folder} has no videos: no file in it or its subfolders ends in {', '.join(VIDEO_SUFFIXES)}."
        )
    return paths


def files_below(root: Path) -> Iterator[Path]:
    """The files below a folder, and below the folders that it links to, without hidden folders."""
    if isinstance(root, UrlPath):
        inside = ((path, path.relative_to(root).parts[:-1]) for path in root.files())
        return (path for path, folders in inside if not any(name.startswith(".") for name in folders))
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


def find_episodes(folder: str | os.PathLike[str]) -> list[RecordedEpisode]:
    """All episodes in a folder and its subfolders, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or has no videos, or a video lacks its actions or JSON.
        ValueError: actions or JSON are invalid.
    """
    return [load_episode(path) for path in find_videos(folder)]


def load_episode(path: str | os.PathLike[str], name: str | None = None) -> RecordedEpisode:
    """The episode of one video file; its name is by default the file's."""
    video = as_path(path)
    for file in (actions_path(video), meta_path(video)):
        if not file.is_file():
            raise FileNotFoundError(
                f"Episode {video} has no {file.name} beside it; finish recording it, write the file, or move the video"
                " elsewhere."
            )
    meta = read_meta(video)
    actions = load_array(actions_path(video), f"Episode {video}")
    actions = _checked_actions(video, actions, meta)
    rewards = load_array(rewards_path(video), f"Episode {video}") if rewards_path(video).is_file() else None
    if rewards is not None:
        check_rewards(f"Episode {video}", rewards_path(video).name, rewards, len(actions), FIX_REWARDS)
        rewards = np.ascontiguousarray(rewards, dtype=np.float32)
    state = load_array(state_path(video), f"Episode {video}") if state_path(video).is_file() else None
    if state is not None:
        check_state(f"Episode {video}", state_path(video).name, state, len(actions), FIX_STATE)
        state = np.ascontiguousarray(state, dtype=np.float32)
    return RecordedEpisode(
        path=video,
        name=name or video.name,
        actions=actions,
        meta=meta,
        rewards=rewards,
        state=state,
    )


def load_array(path: Path, who: str) -> np.ndarray:
    """The array in a file beside a video, as it was written; a ValueError that begins with `who` if it cannot be
    read."""
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


def save_episode_files(
    video: str | os.PathLike[str],
    actions: np.ndarray,
    meta: Mapping[str, Any],
    rewards: np.ndarray | None = None,
    state: np.ndarray | None = None,
) -> None:
    """Writes actions, rewards, state and then the JSON beside a complete video; the JSON marks the episode as
    complete."""
    _checked_actions(as_path(video), actions, meta)
    arrays = {actions_path(video): actions}
    if rewards is not None:
        check_rewards(f"Episode {video}", rewards_path(video).name, rewards, len(actions), FIX_REWARDS)
        arrays[rewards_path(video)] = rewards.astype(np.float32)
    if state is not None:
        check_state(f"Episode {video}", state_path(video).name, state, len(actions), FIX_STATE)
        arrays[state_path(video)] = state.astype(np.float32)
    with ExitStack() as files:  # they get their names at its end, the JSON last
        files.enter_context(atomic_write(meta_path(video))).write_text(
            json.dumps(meta, indent=2) + "\n", encoding="utf-8"
        )
        for path, array in arrays.items():
            with files.enter_context(atomic_write(path)).open("wb") as file:
                np.save(file, array)


def _checked_actions(video: Path, actions: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    """The actions as int64 or float32."""
    where, name = f"Episode {video}", actions_path(video).name
    space = meta.get("action_space", {})
    described = isinstance(space, Mapping) and space.get("space") is not None
    if not described:
        check_action_kind(where, name, actions)
    check_meta(video, meta, actions)
    if "num_frames" in meta:
        fix = f"record the episode again, or correct num_frames in {meta_path(video).name}"
        check_action_count(where, name, actions, meta["num_frames"], fix)
    if described:
        return described_actions(where, name, actions, space["space"], FIX_ACTIONS)
    check_action_values(where, name, actions, space.get("size"), FIX_ACTIONS)
    return as_torch_reads_them(actions)
