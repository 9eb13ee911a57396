"""An index of video files that is kept in the cache folder, so that each version of a file is listed only once.

It is an SQLite database, by the absolute paths of the files. An entry holds for the size and the time of change that
the file had when it was listed; a file with others is listed again. Nothing depends on the index: where it cannot be
read or written, files are listed anew each time.
"""

import atexit
import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidtok_plugin.common.cache_folder import cache_folder
from vidtok_plugin.common.forks import at_fork
from vidtok_plugin.common.remote import entry
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.video.listing import Frames

logger = logging.getLogger(__name__)

LISTED_BY = f"1 {av.__version__}"  # another version of this module, or of PyAV, may list other frames
SETTLED = 2.0  # seconds; a file that was changed more recently might change again without a new time
BATCH, PAUSE = 500, 1.0  # entries and seconds between writes
PATIENCE = 5.0  # seconds to wait for another process that writes
_CREATE = (
    "CREATE TABLE IF NOT EXISTS videos (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, listed_by TEXT, "
    "num_frames INTEGER, fps REAL, time_base REAL, height INTEGER, width INTEGER, frames BLOB) WITHOUT ROWID"
)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a file: its absolute path, its size in bytes, and the time in ns of its last change.

    Of an object at a URL, `changed` stands for the version that the backend names.
    """

    path: str
    size: int
    changed: int
    settled: bool = field(default=True, compare=False)  # it cannot change without another time

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "Version":
        """The version that is there now; raises the errors of `os.stat`, or of `entry` for a URL."""
        if isinstance(path, UrlPath):
            found = entry(str(path))
            return cls(path=str(path), size=found.size, changed=int(found.version[:15] or "0", 16))
        status = os.stat(path)
        settled = time.time() - status.st_mtime >= SETTLED
        return cls(path=os.path.abspath(path), size=status.st_size, changed=status.st_mtime_ns, settled=settled)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is kept of a file: its frames, their mean rate, and the seconds in a unit of their times."""

    num_frames: int
    fps: float
    time_base: float
    size: tuple[int, int] | None  # height and width, once a frame has been decoded
    packed: bytes

    @property
    def frames(self) -> Frames:
        values = json.loads(zlib.decompress(self.packed))
        steps, keys = values.pop("pts"), values.pop("keys")
        pts = None if steps is None else list(accumulate(steps))
        return Frames(num_frames=self.num_frames, pts=pts, keys=list(accumulate(keys)), **values)

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`."""
        return seconds(self.frames, self.fps, self.time_base)


def listing(frames: Frames, fps: float, time_base: float, size: tuple[int, int] | None = None) -> Listing:
    """The listing of a file with these frames."""
    values = {
        "pts": None if frames.pts is None else _steps(frames.pts),
        "keys": _steps(frames.keys),
        **{"seekable": frames.seekable, "closed": frames.closed, "whole": frames.whole},
    }
    packed = zlib.compress(json.dumps(values).encode())
    return Listing(num_frames=frames.num_frames, fps=fps, time_base=time_base, size=size, packed=packed)


def seconds(frames: Frames, fps: float, time_base: float) -> np.ndarray:
    """The times of frames in seconds, float64 `(num_frames,)`, by the mean rate if they have none."""
    if frames.pts is None:
        return np.arange(frames.num_frames) / fps
    return np.array(frames.pts, np.float64) * time_base


def find(version: Version) -> Listing | None:
    """The listing of this version of a file; None if it is not kept."""
    return _current().find(version)


def keep(version: Version, listed: Listing) -> None:
    """Keeps the listing of a file; it is written at once or soon after, at the latest when the process ends."""
    if version.settled:
        _current().keep(version, listed)


def flush() -> None:
    """Writes what is yet to be written."""
    for index in _indices.values():
        index.flush()


class _Index:
    """The database in one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        self._pending: dict[str, tuple[Version, Listing]] = {}
        self._written = 0.0

    def find(self, version: Version) -> Listing | None:
        with self._lock:
            if version.path in self._pending:
                found, listed = self._pending[version.path]
                return listed if found == version else None
            rows = self._execute("SELECT * FROM videos WHERE path = ?", [(version.path,)])
        if not rows or rows[0][:4] != (version.path, version.size, version.changed, LISTED_BY):
            return None
        num_frames, fps, time_base, height, width, packed = rows[0][4:]
        size = None if height is None else (height, width)
        return Listing(num_frames=num_frames, fps=fps, time_base=time_base, size=size, packed=packed)

    def keep(self, version: Version, listed: Listing) -> None:
        with self._lock:
            if self._broken:
                return
            self._pending[version.path] = (version, listed)
            if len(self._pending) >= BATCH or time.monotonic() - self._written > PAUSE:
                self.flush()

    def flush(self) -> None:
        with self._lock:
            if not self._pending:
                return
            rows = [
                (
                    *(version.path, version.size, version.changed, LISTED_BY),
                    *(listed.num_frames, listed.fps, listed.time_base, *(listed.size or (None, None)), listed.packed),
                )
                for version, listed in self._pending.values()
            ]
            self._pending.clear()
            self._execute(f"INSERT OR REPLACE INTO videos VALUES ({', '.join('?' * 10)})", rows)
            self._written = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self.flush()
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _execute(self, statement: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Executes a statement for each row, in one transaction; returns what it selects. Nothing, if that fails."""
        for _ in range(2):
            if self._broken:
                break
            try:
                connection = self._connected()
                if statement.startswith("SELECT"):
                    return connection.execute(statement, rows[0]).fetchall()
                with connection:
                    connection.executemany(statement, rows)
                break
            except (sqlite3.Error, OSError) as error:
                if not self._removed_damaged(error):
                    break
        return []

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.file, timeout=PATIENCE, check_same_thread=False)
            try:
                connection.execute(_CREATE)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _removed_damaged(self, error: Exception) -> bool:
        """After an error: whether the file was damaged and is gone, so that the next try starts it anew."""
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return False  # another process writes for long; what was to be written is listed again next time
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if type(error) is sqlite3.DatabaseError:  # the file is damaged, or no database
            with suppress(OSError):
                self.file.unlink(missing_ok=True)
                logger.warning("%s is damaged (%s); starting it anew", self.file, error)
                return True
        logger.info("%s: videos are listed anew each time, since their index cannot be kept (%s)", self.file, error)
        self._broken = True
        return False


_indices: dict[tuple[str | None, str | None], _Index] = {}


def _current() -> _Index:
    place = os.environ.get("VIDTOK_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if place not in _indices:
        _indices[place] = _Index(cache_folder() / "videos.sqlite")
    return _indices[place]


def _close_all() -> None:
    for index in _indices.values():
        index.close()


def _steps(values: list[int]) -> list[int]:
    return [*values[:1], *(after - before for before, after in pairwise(values))]


at_fork(before=_close_all)  # a connection must not be used in two processes
atexit.register(_close_all)
