"""Reading frames of video files with decord, by readers that stay open in the process that uses them."""

import atexit
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import decord
import numpy as np

from vidtok_plugin.video.unreadable import UnreadableVideoError

ReaderName = Literal["auto", "decord", "pyav"]

_pools: "weakref.WeakSet[ReaderPool]" = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says of itself."""

    path: Path
    num_frames: int
    height: int
    width: int
    fps: float


class ReaderPool:
    """The most recently used decord readers of this process, so that clips from few files don't reopen them.

    A reader has threads of its own, which a forked process doesn't have: freed there, by the garbage
    collector for example, the reader hangs or aborts. So all pools close their readers before a fork, and
    open them anew when they are used. A file that changed on disk is opened again, too.
    """

    def __init__(self, capacity: int = 16) -> None:
        if capacity < 1:
            raise ValueError(f"ReaderPool: capacity must be at least 1, got {capacity}.")
        self.capacity = capacity
        self._readers: OrderedDict[tuple[str, int, int], decord.VideoReader] = OrderedDict()
        _pools.add(self)

    def reader(self, path: str | os.PathLike[str]) -> decord.VideoReader:
        """The open reader of a file."""
        status = _stat(path)
        key = (os.fspath(path), status.st_mtime_ns, status.st_size)
        reader = self._readers.pop(key, None)
        if reader is None:
            reader = _open(path)
            while len(self._readers) >= self.capacity:
                self._readers.popitem(last=False)
        self._readers[key] = reader
        return reader

    def clear(self) -> None:
        """Closes all readers."""
        self._readers.clear()

    def __getstate__(self) -> dict[str, int]:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]


def _close_all() -> None:
    for pool in list(_pools):
        pool.clear()


os.register_at_fork(before=_close_all)
atexit.register(_close_all)  # while the interpreter is whole
_pool = ReaderPool()


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Length, size and rate of a video file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no video.
    """
    reader = _pool.reader(path)
    height, width = _read(path, reader, [0]).shape[1:3]
    return VideoInfo(
        path=Path(path), num_frames=len(reader), height=height, width=width, fps=float(reader.get_avg_fps())
    )


def count_frames(path: str | os.PathLike[str]) -> int:
    """Length of a video file, without decoding any of it; errors as `probe`."""
    return len(_open(path))


def read_frames(
    path: str | os.PathLike[str], indices: Sequence[int] | None = None, *, pool: ReaderPool | None = None
) -> np.ndarray:
    """Frames of a video file as uint8 RGB `(t, h, w, 3)`; all of them without `indices`.

    Readers come from `pool`, or from one that all calls without it share.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no video, an index is outside it, or it holds fewer frames than it says.
    """
    reader = (_pool if pool is None else pool).reader(path)
    indices = range(len(reader)) if indices is None else indices
    outside = [index for index in indices if not 0 <= index < len(reader)]
    if outside:
        raise ValueError(f"Video {path} has frames 0..{len(reader) - 1}, got index {outside[0]}.")
    if len(indices) == 0:
        raise ValueError(f"Video {path}: read_frames needs at least one index, got none.")
    return _read(path, reader, indices)


def read_in_order(path: str | os.PathLike[str], block: int) -> Iterator[np.ndarray]:
    """All frames of a video file in order, as uint8 RGB `(t, h, w, 3)` of `block` frames, at the end fewer.

    Each frame is decoded once, while `read_frames` starts at the key frame before its first: block by block,
    it takes ten times as long where key frames are rare. The reader is the iterator's own, so that a process
    should not fork before it is exhausted or closed (see `ReaderPool`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no video, is damaged, or holds fewer frames than it says.
    """
    reader = _open(path)
    for start in range(0, len(reader), block):
        count = min(block, len(reader) - start)
        yield np.stack([_next(path, reader, index) for index in range(start, start + count)])


def _next(path: str | os.PathLike[str], reader: decord.VideoReader, index: int) -> np.ndarray:
    try:
        return _without_padding(reader.next().asnumpy())
    except StopIteration:
        raise _undecodable(path, index, index, len(reader), EOFError("there are no more")) from None
    except (decord.DECORDError, RuntimeError) as error:
        raise _undecodable(path, index, index, len(reader), error) from None


def _stat(path: str | os.PathLike[str]) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Video {path} doesn't exist; check the path.") from None


def _open(path: str | os.PathLike[str]) -> decord.VideoReader:
    if os.path.isdir(path):
        raise UnreadableVideoError(f"Video {path} is a folder, not a file; name a file in it.")
    if _stat(path).st_size == 0:
        raise UnreadableVideoError(f"Video {path} cannot be read: the file is empty; remove or replace it.")
    try:
        reader = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise UnreadableVideoError(
            f"Video {path} cannot be read: it is no video, or is damaged or cut off ({_cause(error)});"
            " remove or replace it."
        ) from None
    if len(reader) == 0:
        raise UnreadableVideoError(f"Video {path} cannot be read: it has no frames; remove or replace it.")
    return reader


def _read(path: str | os.PathLike[str], reader: decord.VideoReader, indices: Sequence[int]) -> np.ndarray:
    try:
        reader.seek(0)  # without it, a read after one that ended near the file's end may give wrong frames
        return reader.get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        if "from_size == to_size" in str(error):
            return np.stack([_without_padding(reader[index].asnumpy()) for index in indices])
        raise _undecodable(path, min(indices), max(indices), len(reader), error) from None


def _undecodable(
    path: str | os.PathLike[str], first: int, last: int, said: int, error: Exception
) -> UnreadableVideoError:
    return UnreadableVideoError(
        f"Video {path} cannot be decoded at frames {first}..{last}, though it says that it has {said}"
        f" ({_cause(error)}); it is damaged or says too many: re-encode or remove it."
    )


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """A frame `(h, w, 3)`, where decord 0.6 takes the padding of rows for channels.

    FFmpeg pads rows to a multiple of some bytes; where that is a multiple of the width, which happens at
    widths such as 16, 24, 48 and 72, decord gives `(h, w, c)` with c > 3, and its get_batch fails.
    """
    height, width, channels = frame.shape
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def _cause(error: Exception) -> str:
    """The sentence in decord's message, without its stack trace and source lines."""
    text = str(error).split("Stack trace")[0].strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    sentence = first.rsplit("Check failed:", 1)[-1]
    if "] " in sentence and sentence.startswith("["):
        sentence = sentence.split("] ", 1)[1]
    return sentence.strip().rstrip(".") or type(error).__name__
