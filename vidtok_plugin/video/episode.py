"""An episode: frames of one continuous recording with what came with them, whatever files it is read from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidtok_plugin.video.pyav_reader import Fit

if TYPE_CHECKING:
    from vidtok_plugin.video.reading import ReaderPool


class Episode(Protocol):
    """One continuous recording. Opening one reads no frames; an episode can be pickled.

    name: within its source, such as `play/clip.mp4` or `episode_000003`.
    path: the file or folder that it is read from.
    fps: frames per second; None if the files don't say.
    size: height and width of the frames.
    actions: int64 `(t,)` or float32 `(t, a)`; `actions[i]` led from frame i-1 to frame i, and `actions[0]` is ignored.
    state: float32 `(t, s)`; `state[i]` is that of frame i.
    rewards: float32 `(t,)`; `rewards[i]` came with frame i.
    terminated: whether its last frame ended the task or game.
    task: what was to be done, in words.
    action_space: `kind` ("discrete", "continuous" or "mixed") and `size`, if known, and perhaps `space`, a description
        (see `action_space.py`); empty without actions.

    What an episode does not have is None. `str(episode)` says where it is.
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def actions(self) -> np.ndarray | None: ...
    @property
    def state(self) -> np.ndarray | None: ...
    @property
    def rewards(self) -> np.ndarray | None: ...
    @property
    def terminated(self) -> bool | None: ...
    @property
    def task(self) -> str | None: ...
    @property
    def action_space(self) -> Mapping[str, Any]: ...

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: "ReaderPool | None" = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`; see `read_frames`, whose errors it raises."""

    def blocks(self, length: int) -> Iterator[np.ndarray]:
        """All frames in order, in blocks `(length, h, w, 3)`; the last may be shorter."""

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`.

        Raises:
            ValueError: there is no frame rate.
        """

    def frame_rate(self) -> float:
        """`fps`, or a ValueError that says how to state it."""

    def digest(self) -> str:
        """SHA-256 of what a token store keeps of it: frames, actions, rewards, whether it ended, state and task."""

    def digest_without_state(self) -> str:
        """`digest` without state and task, which stores did not always keep."""

    def frames_digest(self) -> str:
        """SHA-256 of its frames as they are in its files."""

    def name_from(self, root: Path | None) -> str:
        """Its name in a store: of a file, its path relative to `root`, or without a root the name of the file."""


class OfEpisode:
    """The name and the place of an episode that shows another one."""

    episode: Episode

    def __str__(self) -> str:
        return str(self.episode)

    @property
    def name(self) -> str:
        return self.episode.name

    @property
    def path(self) -> Path:
        return self.episode.path


class EpisodeMethods:
    """What follows from an episode's other members; the classes of episodes inherit it."""

    def blocks(self: Episode, length: int) -> Iterator[np.ndarray]:
        for start in range(0, self.num_frames, length):
            yield self.read(range(start, min(start + length, self.num_frames)))

    def times(self: Episode) -> np.ndarray:
        return np.arange(self.num_frames) / self.frame_rate()

    def frame_rate(self: Episode) -> float:
        if self.fps is None:
            raise ValueError(f"Episode {self}: fps, the frames per second, must be there; write it into its file.")
        return self.fps

    def digest(self: Episode) -> str:
        digest = self.digest_without_state()
        if self.state is None and self.task is None:
            return digest
        with_state = hashlib.sha256(f"{digest} task={self.task!r}".encode())
        if self.state is not None:
            with_state.update(f"state {self.state.dtype} {self.state.shape}".encode())
            with_state.update(np.ascontiguousarray(self.state).tobytes())
        return with_state.hexdigest()

    def digest_without_state(self: Episode) -> str:
        digest = hashlib.sha256(self.frames_digest().encode())
        for name, values in (("actions", self.actions), ("rewards", self.rewards)):
            if values is not None:
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        if self.terminated is not None:
            digest.update(f"terminated={self.terminated}".encode())
        return digest.hexdigest()

    def name_from(self: Episode, root: Path | None) -> str:
        return self.name


def relative_name(path: Path, root: Path | None) -> str:
    """The path relative to a folder; the file's name without a folder, or if `root` is the file itself."""
    return path.name if root is None or path == root else path.relative_to(root).as_posix()


def check_frames(where: object, frames: Sequence[int], num_frames: int) -> None:
    """Check the frames that are to be read.

    Raises:
        ValueError: there are none, or one is outside the episode.
    """
    if len(frames) == 0:
        raise ValueError(f"Episode {where}: read needs at least one frame, got none.")
    outside = [index for index in frames if not 0 <= index < num_frames]
    if outside:
        raise ValueError(f"Episode {where} has frames 0..{num_frames - 1}, got index {outside[0]}.")
