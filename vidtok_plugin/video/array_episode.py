"""An episode in one `.npz` or HDF5 file.

`frames` is uint8 (t, h, w, 3), or `video` the path of a video file, relative to the episode's. With several cameras
these are `frames/NAME` or `video/NAME`. All others are optional: `fps`, `actions` int (t,) or float (t, a), where
actions[i] led from frame i-1 to frame i, `num_actions` (choices of discrete ones), `action_space` (the description of
a space of several parts, see `action_space`, as JSON text), `state` (t, s), `rewards` (t,), `terminated` and `task`. In
HDF5, single values may be attributes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.video.action_space import kind_and_size
from vidtok_plugin.video.array_files import FIX, ArrayFile, open_arrays
from vidtok_plugin.video.cameras import Cameras, beside, choose_cameras, size_beside
from vidtok_plugin.video.episode import EpisodeMethods, check_frames, relative_name
from vidtok_plugin.video.episode_meta import MAX_ACTIONS, MAX_FPS
from vidtok_plugin.video.pyav_reader import Fit
from vidtok_plugin.video.reading import ReaderPool, probe, read_frames
from vidtok_plugin.video.signals import (
    as_torch_reads_them,
    check_action_count,
    check_action_kind,
    check_action_values,
    check_rewards,
    check_state,
    described_actions,
)

FRAMES, VIDEO = "frames", "video"


@dataclass(frozen=True, kw_only=True)
class View:
    """The frames of one camera: an array in the episode's file, or a video file."""

    array: str = ""
    video: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayEpisode(EpisodeMethods):
    """One episode; its frames are read when they are needed."""

    path: Path
    name: str
    views: tuple[View, ...]  # from left to right
    num_frames: int
    size: tuple[int, int]
    fps: float | None = None
    actions: np.ndarray | None = None
    num_actions: int | None = None
    space: Mapping[str, Any] | None = None  # the description of the actions' space
    state: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: bool | None = None
    task: str | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def action_space(self) -> Mapping[str, Any]:
        if self.actions is None:
            return {}
        if self.space is not None:
            kind, size = kind_and_size(self.space)
            return {"kind": kind, "size": size, "space": self.space}
        if self.actions.ndim == 2:
            return {"kind": "continuous", "size": self.actions.shape[1]}
        return {"kind": "discrete"} | ({} if self.num_actions is None else {"size": self.num_actions})

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        check_frames(self, frames, self.num_frames)
        videos = [self._read(view, frames, pool) for view in self.views]
        return beside(videos) if fit is None else fit(beside(videos))

    def _read(self, view: View, frames: Sequence[int], pool: ReaderPool | None) -> np.ndarray:
        if view.video is not None:
            return read_frames(view.video, frames, pool=pool)
        with open_arrays(self.path) as file:
            return file.rows(view.array, frames)

    def frames_digest(self) -> str:
        files = [self.path, *(view.video for view in self.views if view.video is not None)]
        names = ",".join(view.array or VIDEO for view in self.views)
        return hashlib.sha256(f"{names} {hash_files(*files)}".encode()).hexdigest()

    def name_from(self, root: Path | None) -> str:
        return relative_name(self.path, root)


def has_frames(path: Path) -> bool:
    """Whether a file of arrays is an episode."""
    with open_arrays(path) as file:
        return bool(_cameras(file, FRAMES) or _cameras(file, VIDEO))


def load_array_episode(path: Path, name: str | None = None, camera: Cameras | None = None) -> ArrayEpisode:
    """The episode of one file; its name is by default the file's.

    Raises:
        FileNotFoundError: the file, or a video that it names, does not exist.
        ValueError: it cannot be read, or an array is missing, has another shape or dtype, or is not finite.
    """
    with open_arrays(path) as file:
        views = _views(path, file, camera)
        facts = [_facts(path, file, view) for view in views]
        num_frames = facts[0][0]
        if any(count != num_frames for count, _, _ in facts):
            raise _invalid(path, "cameras must have equally many frames", [count for count, _, _ in facts])
        fps = _number(path, file, "fps", MAX_FPS)
        num_actions = _number(path, file, "num_actions", MAX_ACTIONS)
        arrays = {key: file.array(key) for key in ("actions", "state", "rewards") if key in file.names}
        terminated, task = _value(path, file, "terminated", "b"), _value(path, file, "task", "UO")
        space = _described(path, _value(path, file, "action_space", "UO"))
    where = f"Episode {path}"
    if (actions := arrays.get("actions")) is not None:
        if space is None:
            check_action_kind(where, "actions", actions)
        check_action_count(where, "actions", actions, num_frames, FIX)
        if space is None:
            check_action_values(where, "actions", actions, None if num_actions is None else int(num_actions), FIX)
            actions = as_torch_reads_them(actions)
        else:
            actions = described_actions(where, "actions", actions, space, FIX)
    if (rewards := arrays.get("rewards")) is not None:
        check_rewards(where, "rewards", rewards, num_frames, FIX)
    if (state := arrays.get("state")) is not None:
        check_state(where, "state", state, num_frames, FIX)
    return ArrayEpisode(
        path=path,
        name=name or path.name,
        views=views,
        num_frames=num_frames,
        size=size_beside([size for _, size, _ in facts]),
        fps=facts[0][2] if fps is None else float(fps),
        actions=actions,
        num_actions=None if num_actions is None else int(num_actions),
        space=space,
        state=None if state is None else np.ascontiguousarray(state, dtype=np.float32),
        rewards=None if rewards is None else np.ascontiguousarray(rewards, dtype=np.float32),
        terminated=None if terminated is None else bool(terminated),
        task=None if task is None else str(task),
    )


def _described(path: Path, text: str | None) -> Mapping[str, Any] | None:
    """The description of an action space in its JSON."""
    if text is None:
        return None
    try:
        space = json.loads(text)
    except (ValueError, RecursionError):
        space = None
    if not isinstance(space, dict):
        raise _invalid(path, 'action_space must be JSON, such as {"type": "MultiBinary", "shape": [8]}', text[:100])
    return space


def _cameras(file: ArrayFile, group: str) -> list[str]:
    """The cameras whose frames are in `group`, arrays or videos; "" for one without a name."""
    return [name.partition("/")[2] for name in file.names if name == group or name.startswith(f"{group}/")]


def _views(path: Path, file: ArrayFile, camera: Cameras | None) -> tuple[View, ...]:
    groups = [group for group in (FRAMES, VIDEO) if _cameras(file, group)]
    if len(groups) != 1:
        raise _invalid(path, f"it must have either {FRAMES} or {VIDEO}, for each camera", sorted(file.names))
    cameras = _cameras(file, groups[0])
    if cameras == [""] and camera is not None:
        raise ValueError(f"Episode {path} has one camera without a name, got camera {camera!r}; leave camera out.")
    chosen = choose_cameras(camera, cameras, f"Episode {path}")
    keys = [f"{groups[0]}/{name}" if name else groups[0] for name in chosen]
    if groups[0] == FRAMES:
        return tuple(View(array=key) for key in keys)
    videos = [path.parent / str(_value(path, file, key, "UO")) for key in keys]
    for video in videos:
        if not video.is_file():
            raise FileNotFoundError(f"Episode {path}: its video {video} doesn't exist; restore it, or {FIX}.")
    return tuple(View(video=video) for video in videos)


def _facts(path: Path, file: ArrayFile, view: View) -> tuple[int, tuple[int, int], float | None]:
    """Length, size and rate of a camera's frames."""
    if view.video is not None:
        info = probe(view.video)
        return info.num_frames, (info.height, info.width), info.fps
    shape, dtype = file.header(view.array)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise _invalid(path, f"{view.array} must be uint8 RGB of shape (t, h, w, 3)", f"{dtype} of {shape}")
    return shape[0], (shape[1], shape[2]), None


def _value(path: Path, file: ArrayFile, name: str, kinds: str) -> Any:
    """A single value; None if the file has none of that name."""
    if name not in file.names:
        return None
    value = file.array(name)
    if value.size != 1 or value.dtype.kind not in kinds:
        wanted = {"b": "true or false", "iuf": "a number"}.get(kinds, "a text")
        raise _invalid(path, f"{name} must be {wanted}", f"{value.dtype} of {value.shape}")
    return value.item()


def _number(path: Path, file: ArrayFile, name: str, largest: int) -> float | None:
    value = _value(path, file, name, "iuf")
    if value is not None and not 0 < value <= largest:
        raise _invalid(path, f"{name} must be above 0, at most {largest}", value)
    return value


def _invalid(path: Path, rule: str, value: object) -> ValueError:
    return ValueError(f"Episode {path}: {rule}, got {value}; {FIX}.")
