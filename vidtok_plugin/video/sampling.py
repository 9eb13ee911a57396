"""Sampling the frames of a clip: at a fixed interval, or nearest in time at a target frame rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.video.episode import Episode

ROUNDING = 1e-6  # seconds


@dataclass(frozen=True, kw_only=True)
class IndexedVideo:
    """A video that clips are sampled from.

    For sampling by rate it has the times of its frames: as a constant `rate`, or as `times` in seconds, float64
    `(num_frames,)`, increasing.
    """

    episode: Episode
    num_frames: int
    rate: float | None = None
    times: np.ndarray | None = None

    @classmethod
    def timed(cls, episode: Episode, times: np.ndarray) -> "IndexedVideo":
        """A video with these frame times, stored as a rate if it is constant."""
        if len(times) > 1:
            rate = (len(times) - 1) / float(times[-1] - times[0])
            if np.abs(times - times[0] - np.arange(len(times)) / rate).max() < ROUNDING:
                return cls(episode=episode, num_frames=len(times), rate=rate)
        return cls(episode=episode, num_frames=len(times), times=times)

    @property
    def path(self) -> Path:
        return self.episode.path

    @property
    def frame_times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`."""
        if self.times is not None:
            return self.times
        assert self.rate is not None, "indexed without times"
        return np.arange(self.num_frames) / self.rate

    @property
    def mean_rate(self) -> float:
        """The mean frame rate."""
        if self.num_frames == 1:
            return float("inf")
        times = self.frame_times
        return (self.num_frames - 1) / float(times[-1] - times[0])


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """How the `clip_length` frames of a clip are sampled, given its first frame.

    With `fps`, frame i of the clip is the video's frame nearest in time to `start + i / fps`; of two equally near, the
    earlier. Frames are never blended. A frame that is shown for longer than 1 / fps repeats, which happens in videos
    slower than `fps`, and never in those of a constant rate of at least `fps`. Without `fps`, frames are
    `frame_interval` apart, whatever their times.

    Example:
        >>> from vidtok_plugin.video.video_file import VideoFile
        >>> video = IndexedVideo(episode=VideoFile.at(Path("clip.mp4")), num_frames=100, rate=30.0)
        >>> ClipFrames(clip_length=4, fps=12.0).indices(video, start=10)
        [10, 12, 15, 17]
    """

    clip_length: int
    frame_interval: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
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
        """The minimal length of a video, for error messages."""
        if self.fps is None:
            return f"{(self.clip_length - 1) * self.frame_interval + 1} frames"
        return f"{(self.clip_length - 1) / self.fps:.3g} s from its first frame to its last"

    def num_starts(self, video: IndexedVideo) -> int:
        """The number of frames, from the first, that a clip may start at; 0 if the video is too short."""
        if self.fps is None:
            return max(0, video.num_frames - (self.clip_length - 1) * self.frame_interval)
        times = video.frame_times
        # Half a frame of tolerance at the end, since containers round times, for example to 1 ms.
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
        """The starts of clips, `every` frames apart, or by default without overlap."""
        count = self.num_starts(video)
        if every is not None or self.fps is None:
            return list(range(0, count, every or (self.clip_length - 1) * self.frame_interval + 1))
        starts, start = [], 0
        while start < count:
            starts.append(start)
            start = self.indices(video, start)[-1] + 1
        return starts


def resample(video: IndexedVideo, fps: float) -> Sequence[int]:
    """The frames of a whole video at `fps`, as `ClipFrames` takes them from its first frame to its last.

    Example:
        >>> from vidtok_plugin.video.video_file import VideoFile
        >>> video = IndexedVideo(episode=VideoFile.at(Path("clip.mp4")), num_frames=9, rate=30.0)
        >>> resample(video, 12.0)
        [0, 2, 5, 7]
    """
    times = video.frame_times
    seconds = float(times[-1] - times[0]) + 0.5 / video.mean_rate  # half a frame of tolerance, as for clips
    return ClipFrames(clip_length=1 + int(seconds * fps), fps=fps).indices(video, 0)
