"""Which frames of a video make a clip: every so many, or those nearest to the times of another frame rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROUNDING = 1e-6  # seconds


@dataclass(frozen=True, kw_only=True)
class IndexedVideo:
    """A video that clips are taken from.

    Where frame rates matter, it tells its frames' times in seconds: by its `rate` if that is constant, or else by
    `times`, float64 `(num_frames,)`, increasing.
    """

    path: Path
    num_frames: int
    rate: float | None = None
    times: np.ndarray | None = None

    @classmethod
    def timed(cls, path: Path, times: np.ndarray) -> "IndexedVideo":
        """A video whose frames have these times, which are kept only if they aren't those of a constant rate."""
        if len(times) > 1:
            rate = (len(times) - 1) / float(times[-1] - times[0])
            if np.abs(times - times[0] - np.arange(len(times)) / rate).max() < ROUNDING:
                return cls(path=path, num_frames=len(times), rate=rate)
        return cls(path=path, num_frames=len(times), times=times)

    @property
    def frame_times(self) -> np.ndarray:
        """The frames' times in seconds, float64 `(num_frames,)`."""
        if self.times is not None:
            return self.times
        assert self.rate is not None, "indexed without times"
        return np.arange(self.num_frames) / self.rate

    @property
    def mean_rate(self) -> float:
        """Frames a second, on average."""
        if self.num_frames == 1:
            return float("inf")
        times = self.frame_times
        return (self.num_frames - 1) / float(times[-1] - times[0])


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """The `clip_length` frames of a clip that starts at a given frame.

    With `fps` the clip's frame i is the video's frame that is nearest in time to `start + i / fps` (the earlier of two
    equally near), so that nothing is ever blended. Where the video shows one frame for longer than 1 / fps, that frame
    repeats: throughout a video that is slower than `fps`, never in one of a constant rate that isn't. Without `fps`
    they are `frame_interval` frames apart, whatever their times.
    """

    clip_length: int
    frame_interval: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.clip_length < 1 or self.frame_interval < 1:
            raise ValueError(
                f"ClipFrames: clip_length and frame_interval must be at least 1, got {self.clip_length} and"
                f" {self.frame_interval}."
            )
        if self.fps is not None and self.frame_interval != 1:
            raise ValueError(
                f"ClipFrames: fps={self.fps:g} and frame_interval={self.frame_interval} exclude each other; leave one"
                " of them out."
            )
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"ClipFrames: fps must be above 0, got {self.fps}.")

    @property
    def needs(self) -> str:
        """What a video must have, for error messages."""
        if self.fps is None:
            return f"{(self.clip_length - 1) * self.frame_interval + 1} frames"
        return f"{(self.clip_length - 1) / self.fps:.3g} s from its first frame to its last"

    def num_starts(self, video: IndexedVideo) -> int:
        """How many of a video's frames a clip may start at: the first so many, none if it is too short."""
        if self.fps is None:
            return max(0, video.num_frames - (self.clip_length - 1) * self.frame_interval)
        times = video.frame_times
        # The last time may lie half a frame after the last frame's, since containers round times, to 1 ms for example.
        latest = times[-1] + 0.5 / video.mean_rate - (self.clip_length - 1) / self.fps
        return int(np.searchsorted(times, latest, side="right"))

    def indices(self, video: IndexedVideo, start: int) -> Sequence[int]:
        """The frames of the clip that starts at frame `start`."""
        if self.fps is None:
            return range(start, start + (self.clip_length - 1) * self.frame_interval + 1, self.frame_interval)
        times = video.frame_times
        wanted = times[start] + np.arange(self.clip_length) / self.fps
        after = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
        before = np.maximum(after - 1, 0)
        nearer_after = times[after] - wanted < wanted - times[before] - ROUNDING
        return np.where(nearer_after, after, before).tolist()

    def starts(self, video: IndexedVideo, every: int | None = None) -> list[int]:
        """Starts that are `every` frames of the video apart; by default the clips follow each other without overlap."""
        count = self.num_starts(video)
        if every is not None or self.fps is None:
            return list(range(0, count, every or (self.clip_length - 1) * self.frame_interval + 1))
        starts, start = [], 0
        while start < count:
            starts.append(start)
            start = self.indices(video, start)[-1] + 1
        return starts
