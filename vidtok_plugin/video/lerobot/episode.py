"""An episode of a LeRobot dataset: its part of the videos, and its rows of the tables, shifted to our convention.

Row i has the frame at time i, the state at i, the action taken at i, and in `next.*` what that action led to. Ours are
by the frame they led to: `actions[i]` is row i-1's action, and `rewards[i]` its `next.reward`. What the last row's
action led to has no frame, so that action and its reward are left out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.video.cameras import beside, size_beside
from vidtok_plugin.video.episode import EpisodeMethods, check_frames
from vidtok_plugin.video.lerobot.tables import FIX, column, read_table
from vidtok_plugin.video.packets import hash_frames
from vidtok_plugin.video.pyav_reader import Fit
from vidtok_plugin.video.reading import ReaderPool, frame_times, probe, read_frames
from vidtok_plugin.video.signals import check_finite
from vidtok_plugin.video.unreadable import UnreadableVideoError

ACTION, STATE, REWARD = "action", "observation.state", "next.reward"
DONE, TERMINATED, SUCCESS = "next.done", "next.terminated", "next.success"
SIGNALS = (ACTION, STATE, REWARD, DONE, TERMINATED, SUCCESS)
EPISODE_INDEX, FRAME_INDEX = "episode_index", "frame_index"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The part of a camera's mp4 file that shows an episode."""

    camera: str
    path: Path
    start: float  # seconds
    whole: bool  # the file shows nothing else


@dataclass(frozen=True, kw_only=True, eq=False)
class LeRobotEpisode(EpisodeMethods):
    """One episode; its tables and videos are opened when they are needed.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: its rows or videos don't have the length that the dataset states, or values are not finite.
        UnreadableVideoError: a video is damaged.
    """

    path: Path  # of the dataset
    index: int  # its episode_index
    num_frames: int
    fps: float
    task: str | None
    table: Path  # with its rows, perhaps among those of other episodes
    segments: tuple[Segment, ...]  # of the cameras, from left to right
    signals: tuple[str, ...]  # of SIGNALS, the columns that the dataset has
    num_actions: int | None = None  # the size of a discrete action space

    @property
    def name(self) -> str:
        return f"episode_{self.index:06d}"

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"

    @property
    def size(self) -> tuple[int, int]:
        infos = [probe(segment.path) for segment in self.segments]
        return size_beside([(info.height, info.width) for info in infos])

    @property
    def actions(self) -> np.ndarray | None:
        actions = self._columns.get(ACTION)
        return None if actions is None else _led_to(actions)

    @property
    def state(self) -> np.ndarray | None:
        return self._columns.get(STATE)

    @property
    def rewards(self) -> np.ndarray | None:
        rewards = self._columns.get(REWARD)
        return None if rewards is None else _led_to(rewards)

    @property
    def terminated(self) -> bool | None:
        """Whether the last row says that the task ended: `next.terminated`, or else `next.done`.

        `next.done` is also set where a recording was cut; so where the rows have `next.success`, that must be set too.
        """
        last = {name: bool(values.flat[-1]) for name, values in self._columns.items() if name not in (ACTION, STATE)}
        if TERMINATED in last:
            return last[TERMINATED]
        return last[DONE] and last.get(SUCCESS, True) if DONE in last else None

    @property
    def action_space(self) -> Mapping[str, Any]:
        if ACTION not in self.signals:
            return {}
        if self.num_actions is not None:
            return {"kind": "discrete", "size": self.num_actions}
        return {"kind": "continuous", "size": self._columns[ACTION].shape[1]}

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        check_frames(self, frames, self.num_frames)
        alone = fit if len(self.segments) == 1 else None
        videos = [
            read_frames(segment.path, [self._first(segment, pool) + i for i in frames], pool=pool, fit=alone)
            for segment in self.segments
        ]
        return videos[0] if len(videos) == 1 else beside(videos) if fit is None else fit(beside(videos))

    def frames_digest(self) -> str:
        parts = [
            f"{segment.camera} {hash_frames(segment.path, self._first(segment, None), self.num_frames)}"
            for segment in self.segments
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _first(self, segment: Segment, pool: ReaderPool | None) -> int:
        """The number of the episode's first frame in a file; checks that the file has all of its frames."""
        where = f"Episode {self}: video {segment.path}"
        if not segment.path.is_file():
            raise FileNotFoundError(f"{where} is missing; {FIX}.")
        times = frame_times(segment.path, pool=pool)
        if segment.whole and len(times) != self.num_frames:
            raise UnreadableVideoError(f"{where} must have {self.num_frames} frames, got {len(times)}; {FIX}.")
        first = int(np.abs(times - segment.start).argmin())
        shown = times[first : first + self.num_frames]
        wanted = segment.start + np.arange(self.num_frames) / self.fps
        if len(shown) < self.num_frames or np.abs(shown - wanted).max() >= 0.5 / self.fps:
            raise UnreadableVideoError(
                f"{where} must have a frame every {1 / self.fps:.4g} s from {segment.start:.4f} s on for "
                f"{self.num_frames} frames, got {len(times)} frames from {times[0]:.4f} to {times[-1]:.4f} s; {FIX}."
            )
        return first

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Its rows' actions int64 (t,) or float32 (t, a), states float32 (t, s), rewards float32 (t,), and truth values
        bool (t,), as they are in the table."""
        table = read_table(self.table)
        where = f"Episode {self}: {self.table}"
        for name in (EPISODE_INDEX, FRAME_INDEX, *self.signals):
            if name not in table.column_names:
                raise ValueError(f"{where} must have the column {name}, got {', '.join(table.column_names)}; {FIX}.")
        own = column(table, EPISODE_INDEX, self.table) == self.index
        rows = table.filter(own) if table.num_rows else table
        if rows.num_rows != self.num_frames:
            raise ValueError(
                f"{where} must have {self.num_frames} rows of the episode, as the dataset states, got {rows.num_rows}; "
                f"{FIX}."
            )
        order = column(rows, FRAME_INDEX, self.table)
        if not np.array_equal(order, np.arange(self.num_frames)):
            raise ValueError(f"{where} must have frame_index 0..{self.num_frames - 1} in order, got others; {FIX}.")
        found: dict[str, np.ndarray] = {}
        for name in self.signals:
            values = column(rows, name, self.table)
            check_finite(where, name, "values", values, FIX)
            found[name] = self._shaped(name, values)
        return found

    def _shaped(self, name: str, values: np.ndarray) -> np.ndarray:
        if name == ACTION and self.num_actions is not None:
            return values.reshape(self.num_frames).astype(np.int64)
        if name in (ACTION, STATE):
            return values.reshape(self.num_frames, -1).astype(np.float32)
        values = values.reshape(self.num_frames, -1)
        if values.shape[1] != 1:
            raise ValueError(f"Episode {self}: {self.table} must have one value of {name} in each row; {FIX}.")
        return values[:, 0].astype(np.float32 if name == REWARD else bool)


def _led_to(values: np.ndarray) -> np.ndarray:
    """Values by the frame that they led to, given by the frame before; zero for the first frame."""
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])
