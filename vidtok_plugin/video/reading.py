"""Reading frames of video files with PyAV, decord or torchcodec, through a pool of open readers."""

import atexit
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from vidtok_plugin.common.forks import at_fork
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.video import kept_index
from vidtok_plugin.video.decord_reader import DecordReader, decord_or_none
from vidtok_plugin.video.exactness import NotExactError
from vidtok_plugin.video.kept_index import Listing, Version
from vidtok_plugin.video.pyav_reader import Fit, PyavReader
from vidtok_plugin.video.torchcodec_reader import TorchcodecReader, torchcodec_decoder
from vidtok_plugin.video.unreadable import UnreadableVideoError, undecodable, unopenable

logger = logging.getLogger(__name__)

ReaderName = Literal["auto", "decord", "pyav", "torchcodec"]

READERS = 16  # that a pool keeps open

_pools: "weakref.WeakSet[ReaderPool]" = weakref.WeakSet()


class OpenVideo(Protocol):
    """An open video file; frames are numbered by time."""

    num_frames: int
    fps: float

    @property
    def size(self) -> tuple[int, int]: ...
    def times(self) -> np.ndarray: ...
    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray: ...
    def in_order(self) -> Iterator[np.ndarray]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Length, size and rate of a video file."""

    path: Path
    num_frames: int
    height: int
    width: int
    fps: float


class OutsideVideoError(ValueError):
    """A frame is outside the video."""

    def __init__(self, path: str | os.PathLike[str], num_frames: int, index: int) -> None:
        super().__init__(f"Video {path} has frames 0..{num_frames - 1}, got index {index}.")
        self.num_frames = num_frames


class ReaderPool:
    """The most recently used open readers of this process, so that repeated reads of a file don't reopen it.

    A decord reader has threads, which do not exist in a forked process; freeing the reader there hangs or aborts.
    Therefore all pools close their readers before a fork and reopen them when needed. A file that has changed on disk
    is reopened as well.
    """

    def __init__(self, capacity: int = READERS) -> None:
        if capacity < 1:
            raise ValueError(f"ReaderPool: capacity must be at least 1, got {capacity}.")
        self.capacity = capacity
        self._readers: OrderedDict[tuple[str, int, int, str], OpenVideo] = OrderedDict()
        _pools.add(self)

    def reader(self, path: str | os.PathLike[str], reader: ReaderName = "auto") -> OpenVideo:
        """The open reader of a file."""
        version = _version(path)
        key = (version.path, version.changed, version.size, reader)
        opened = self._readers.pop(key, None)
        if opened is None:
            opened = open_video(path, reader)
            while len(self._readers) >= self.capacity:
                self._readers.popitem(last=False)[1].close()
        self._readers[key] = opened
        return opened

    def clear(self) -> None:
        """Closes all readers."""
        while self._readers:
            self._readers.popitem()[1].close()

    def __getstate__(self) -> dict[str, int]:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]


def close_readers() -> None:
    """Closes the open readers of all pools of this process; they are opened again when they are needed."""
    for pool in list(_pools):
        pool.clear()


at_fork(before=close_readers)
atexit.register(close_readers)  # before the interpreter is torn down
_pool = ReaderPool()


def open_video(path: str | os.PathLike[str], reader: ReaderName = "auto") -> OpenVideo:
    """Opens a video file; "auto" is PyAV, which reads most formats and reports most damage.

    Where decord or torchcodec may give other frames than those asked for, PyAV reads instead, which is logged once.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableVideoError: the file is not a video.
    """
    if reader not in get_args(ReaderName):
        raise ValueError(f"reader must be one of {', '.join(get_args(ReaderName))}, got {reader!r}.")
    version = _version(path)
    if path.is_dir() if isinstance(path, UrlPath) else os.path.isdir(path):
        raise UnreadableVideoError(f"Video {path} is a folder, not a file; give a file in it.")
    if version.size == 0:
        raise unopenable(path, "the file is empty")
    if reader in ("decord", "torchcodec"):
        try:
            return DecordReader(path) if reader == "decord" else TorchcodecReader(path)
        except NotExactError as error:
            _log_once(f"PyAV reads in place of {reader}. {error}")
    return PyavReader(path)


def prepare_reader(reader: ReaderName) -> None:
    """Imports a reader's package, which takes seconds.

    Raises:
        ValueError: torchcodec is not installed, or cannot load FFmpeg or PyTorch.
    """
    if reader == "decord":
        decord_or_none()
    elif reader == "torchcodec":
        torchcodec_decoder()


@cache
def _log_once(message: str) -> None:
    logger.warning(message)


def probe(path: str | os.PathLike[str], *, reader: ReaderName = "auto") -> VideoInfo:
    """Length, size and rate of a video file.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableVideoError: the file is not a video.
    """
    return _probed(_hashable(path), _version(path), reader)


@lru_cache(maxsize=10_000)
def _probed(path: str | UrlPath, version: Version, reader: ReaderName) -> VideoInfo:
    """One version of a file is decoded once: tokenizing asks several times an episode."""
    kept = _kept(version, reader)
    if kept is not None and kept.size is not None:
        height, width = kept.size
        return VideoInfo(path=as_path(path), num_frames=kept.num_frames, height=height, width=width, fps=kept.fps)
    opened = _pool.reader(path, reader)
    height, width = opened.size
    if isinstance(opened, PyavReader):
        kept_index.keep(version, replace(opened.listing, size=(height, width)))
    return VideoInfo(path=as_path(path), num_frames=opened.num_frames, height=height, width=width, fps=opened.fps)


def _kept(version: Version, reader: ReaderName) -> Listing | None:
    """What is kept of a version of a file: with decord, which counts by itself, nothing."""
    return None if reader == "decord" else kept_index.find(version)


def variable_times(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The times of the frames in seconds, float64 `(num_frames,)`; None if the rate is constant within 2 ms."""
    opened = open_video(path)
    try:
        times = opened.times()
        constant = times[0] + np.arange(len(times)) / opened.fps
        return None if np.abs(times - constant).max() < 0.002 else times
    finally:
        opened.close()


def frame_times(path: str | os.PathLike[str], *, pool: ReaderPool | None = None) -> np.ndarray:
    """The times of the frames in seconds, float64 `(num_frames,)`; raises the errors of `probe`."""
    return (_pool if pool is None else pool).reader(path).times()


def listed_times(path: str | os.PathLike[str], *, reader: ReaderName = "auto") -> np.ndarray:
    """`frame_times` of a file that is not about to be read."""
    kept = _kept(_version(path), reader)
    if kept is not None:
        return kept.times()
    opened = open_video(path, reader)
    try:
        return opened.times()
    finally:
        opened.close()


def count_frames(path: str | os.PathLike[str], *, reader: ReaderName = "auto") -> int:
    """Length of a video file, without decoding it; raises the errors of `probe`."""
    return _counted(_hashable(path), _version(path), reader)


@lru_cache(maxsize=100_000)
def _counted(path: str | UrlPath, version: Version, reader: ReaderName) -> int:
    kept = _kept(version, reader)
    if kept is not None:
        return kept.num_frames
    opened = open_video(path, reader)
    opened.close()
    return opened.num_frames


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int] | None = None,
    *,
    pool: ReaderPool | None = None,
    reader: ReaderName = "auto",
    fit: Fit | None = None,
) -> np.ndarray:
    """Frames of a video file as uint8 RGB `(t, h, w, 3)`, by default all of them.

    pool: the pool of readers; by default one for all calls.
    fit: applied to the frames in blocks of any length, for example to resize them one by one.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableVideoError: the file is not a video, is damaged, or has fewer frames than it declares.
        ValueError: an index is outside the video.
    """
    opened = (_pool if pool is None else pool).reader(path, reader)
    indices = range(opened.num_frames) if indices is None else indices
    outside = [index for index in indices if not 0 <= index < opened.num_frames]
    if outside:
        raise OutsideVideoError(path, opened.num_frames, outside[0])
    if len(indices) == 0:
        raise ValueError(f"Video {path}: read_frames needs at least one index, got none.")
    return opened.read(indices, fit)


def read_in_order(path: str | os.PathLike[str], block: int, *, reader: ReaderName = "auto") -> Iterator[np.ndarray]:
    """All frames of a video file in order, in blocks `(block, h, w, 3)` of uint8 RGB; the last may be shorter.

    Each frame is decoded once. Reading blocks by `read_frames`, which starts at the previous key frame, takes ten times
    as long where key frames are rare. The iterator has its own reader, so a process must not fork before the iterator
    is exhausted or closed (see `ReaderPool`).

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableVideoError: the file is not a video, is damaged, or has fewer frames than it declares.
    """
    opened = open_video(path, reader)
    try:
        frames = opened.in_order()
        done = 0
        while done < opened.num_frames:
            count = min(block, opened.num_frames - done)
            pixels = list(islice(frames, count))
            if len({frame.shape for frame in pixels}) > 1:
                raise undecodable(path, range(done, done + count), opened.num_frames, "their sizes differ")
            yield np.stack(pixels)
            done += count
    finally:
        opened.close()


def _hashable(path: str | os.PathLike[str]) -> str | UrlPath:
    return path if isinstance(path, UrlPath) else os.fspath(path)


def _version(path: str | os.PathLike[str]) -> Version:
    try:
        return Version.of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Video {path} doesn't exist; check the path.") from None
