"""Indexing videos and reading resized clips, in this process or in one with a timeout."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.video.reader_process import ReaderProcess, ReaderStoppedError
from vidtok_plugin.video.reading import ReaderName, ReaderPool, open_video, read_frames
from vidtok_plugin.video.resizing import cover, resize_and_crop
from vidtok_plugin.video.sampling import IndexedVideo
from vidtok_plugin.video.unreadable import UnreadableVideoError

PathLike = str | os.PathLike[str]


class ClipReader:
    """Indexes videos and reads clips, with a `timeout` in seconds through a ReaderProcess.

    Frames are resized to cover the clip's size and cropped at `place` (see `crop_out`), or not cropped without `cut`.
    """

    index_function = "vidtok_plugin.video.clip_reader:index_video"  # called in the process
    read_function = "vidtok_plugin.video.clip_reader:read_clip_from"

    def __init__(self, *, reader: ReaderName = "auto", timeout: float | None = None, open_videos: int = 32) -> None:
        self.reader = reader
        self.pool = ReaderPool(open_videos)
        self.process = None if timeout is None else ReaderProcess(timeout)

    def index(self, path: PathLike, *, timed: bool) -> IndexedVideo:
        """The length of a video, and if `timed`, the times of its frames.

        Raises:
            FileNotFoundError: the file does not exist.
            UnreadableVideoError: it is not a video, is damaged, or takes too long.
        """
        if self.process is None:
            return index_video(path, self.reader, timed)
        return self._call(path, self.index_function, path, self.reader, timed)

    def frames(
        self,
        path: PathLike,
        indices: Sequence[int],
        height: int,
        width: int,
        place: tuple[float, float] | None = None,
        *,
        cut: bool = True,
    ) -> np.ndarray:
        """Frames as uint8 RGB `(t, height, width, 3)`; raises the errors of `index`."""
        arguments = (path, indices, height, width, place, cut, self.reader)
        if self.process is None:
            return read_clip(self.pool, *arguments)
        return self._call(path, self.read_function, self.pool.capacity, *arguments)

    def _call(self, path: PathLike, function: str, *arguments: Any) -> Any:
        assert self.process is not None
        try:
            return self.process.call(function, *arguments)
        except ReaderStoppedError as error:
            raise UnreadableVideoError(
                f"Video {path} cannot be read: {error}; remove or replace it, or raise read_timeout."
            ) from None


def index_video(path: PathLike, reader: ReaderName, timed: bool) -> IndexedVideo:
    """`ClipReader.index` in this process."""
    opened = open_video(path, reader)
    try:
        if timed:
            return IndexedVideo.timed(Path(path), opened.times())
        return IndexedVideo(path=Path(path), num_frames=opened.num_frames)
    finally:
        opened.close()


def read_clip(
    pool: ReaderPool,
    path: PathLike,
    indices: Sequence[int],
    height: int,
    width: int,
    place: tuple[float, float] | None,
    cut: bool,
    reader: ReaderName,
) -> np.ndarray:
    """`ClipReader.frames` in this process."""
    num_frames = pool.reader(path, reader).num_frames
    if max(indices) >= num_frames:
        raise UnreadableVideoError(
            f"Video {path} cannot be read: it now has {num_frames} frames, fewer than when it was indexed; restore the"
            " file."
        )

    def fit(frames: np.ndarray) -> np.ndarray:
        return resize_and_crop(frames, height, width, place) if cut else cover(frames, height, width)

    return read_frames(path, indices, pool=pool, reader=reader, fit=fit)


def read_clip_from(open_videos: int, *arguments: Any) -> np.ndarray:
    """`read_clip` with readers that stay open in the process that it runs in."""
    return read_clip(_pool(open_videos), *arguments)


@cache
def _pool(capacity: int) -> ReaderPool:
    return ReaderPool(capacity)
