"""Indexing videos and reading resized clips, in this process or in one with a timeout."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.reader_process import ReaderProcess, ReaderStoppedError
from vidtok_plugin.video.reading import OutsideVideoError, ReaderName, ReaderPool, prepare_reader
from vidtok_plugin.video.resizing import cover, resize_and_crop
from vidtok_plugin.video.sampling import IndexedVideo
from vidtok_plugin.video.unreadable import UnreadableVideoError
from vidtok_plugin.video.video_file import as_episode


class ClipReader:
    """Indexes videos and reads clips, with a `timeout` in seconds through a ReaderProcess.

    Frames are resized to cover the clip's size and cropped at `place` (see `crop_out`), or not cropped without `cut`.
    A path is the video file there, which `reader` reads.
    """

    index_function = "vidtok_plugin.video.clip_reader:index_video"  # called in the process
    read_function = "vidtok_plugin.video.clip_reader:read_clip_from"

    def __init__(self, *, reader: ReaderName = "auto", timeout: float | None = None, open_videos: int = 32) -> None:
        prepare_reader(reader)
        self.reader = reader
        self.pool = ReaderPool(open_videos)
        self.process = None if timeout is None else ReaderProcess(timeout, reader)

    def index(self, video: Episode | Path, *, timed: bool) -> IndexedVideo:
        """The length of a video, and if `timed`, the times of its frames.

        Raises:
            FileNotFoundError: the file does not exist.
            UnreadableVideoError: it is not a video, is damaged, or takes too long.
            ValueError: `timed`, but it has no frame rate.
        """
        episode = as_episode(video, self.reader)
        if self.process is None:
            return index_video(episode, timed)
        return self._call(episode, self.index_function, episode, timed)

    def frames(
        self,
        episode: Episode,
        indices: Sequence[int],
        height: int,
        width: int,
        place: tuple[float, float] | None = None,
        *,
        cut: bool = True,
    ) -> np.ndarray:
        """Frames as uint8 RGB `(t, height, width, 3)`; raises the errors of `index`."""
        arguments = (episode, indices, height, width, place, cut)
        if self.process is None:
            return read_clip(self.pool, *arguments)
        return self._call(episode, self.read_function, self.pool.capacity, *arguments)

    def _call(self, episode: Episode, function: str, *arguments: Any) -> Any:
        assert self.process is not None
        try:
            return self.process.call(function, *arguments)
        except ReaderStoppedError as error:
            raise UnreadableVideoError(
                f"Video {episode} cannot be read: {error}; remove or replace it, or raise read_timeout."
            ) from None


def index_video(episode: Episode, timed: bool) -> IndexedVideo:
    """`ClipReader.index` in this process."""
    if timed:
        return IndexedVideo.timed(episode, episode.times())
    return IndexedVideo(episode=episode, num_frames=episode.num_frames)


def read_clip(
    pool: ReaderPool,
    episode: Episode,
    indices: Sequence[int],
    height: int,
    width: int,
    place: tuple[float, float] | None,
    cut: bool,
) -> np.ndarray:
    """`ClipReader.frames` in this process."""

    def fit(frames: np.ndarray) -> np.ndarray:
        return resize_and_crop(frames, height, width, place) if cut else cover(frames, height, width)

    try:
        return episode.read(indices, fit=fit, pool=pool)
    except OutsideVideoError as error:
        raise UnreadableVideoError(
            f"Video {episode} cannot be read: it now has {error.num_frames} frames, fewer than when it was indexed; "
            "restore the file."
        ) from None


def read_clip_from(open_videos: int, *arguments: Any) -> np.ndarray:
    """`read_clip` with readers that stay open in the process that it runs in."""
    return read_clip(_pool(open_videos), *arguments)


@cache
def _pool(capacity: int) -> ReaderPool:
    return ReaderPool(capacity)
