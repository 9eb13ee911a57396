"""Locks on files and folders, which refuse a second writer. A lock ends with its process, however that ends."""

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from vidtok_plugin.common.atomic_files import naming
from vidtok_plugin.common.paths import as_path

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
PATIENCE = 1.0  # seconds to wait for a lock that a process may be about to release
SHARED_PATIENCE = 30.0  # for a shared lock: other holders may look whether they are alone, see `FolderLock.alone`
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # by a network file system


class FolderLock:
    """While it is held, no other process, and no other thread of this one, can lock the folder under the same name.

    The operating system releases the lock of a process that is killed. The file `FOLDER/NAME` names the holder; it is
    removed at the end, and so are folders that the lock created, if nothing was written there.

    shared: others may hold the lock too, if theirs is shared as well.

    Raises:
        ValueError: another process holds the lock.
        OSError: the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, FolderLock(folder):
        ...     os.listdir(folder)
        ['.lock']
    """

    def __init__(self, folder: str | os.PathLike[str], *, name: str = LOCK_FILE, shared: bool = False) -> None:
        self.folder, self.shared = as_path(folder), shared
        self._path = self.folder / name
        self._file: int | None = None
        self._created: list[Path] = []

    def __enter__(self) -> Self:
        self._created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self._file = lock_file(self._path, what=str(self.folder), shared=self.shared)
        if self._file is not None and not self.shared:
            try:
                with naming(self._path):
                    os.ftruncate(self._file, 0)
                    os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode())
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with self.alone() as alone:
                if alone:
                    self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:  # it has contents, or is gone
                break

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process holds the shared lock. If so, none can get it before the end of the context."""
        if self._file is None or not self.shared:
            yield self._file is not None
            return
        try:
            _lock(self._file, shared=False)
            alone = True
        except BlockingIOError:
            alone = False
        try:
            yield alone
        finally:
            _lock(self._file, shared=True, wait=True)  # also after a failure, which gave the lock up


def lock_file(path: Path, *, what: str, shared: bool = False) -> int | None:
    """Creates the file if needed and locks it; returns its descriptor, whose closing ends the lock.

    The holder may rename or remove the file; the lock is then another process's to take on a new file. None, after a
    warning, where the system or the file system has no locks.

    Raises:
        ValueError: another process holds the lock; the message says that it is writing `what`.
        OSError: the file cannot be created.
    """
    if sys.platform == "win32":
        path.parent.mkdir(parents=True, exist_ok=True)
        _warn_without_locks()
        return None
    deadline = time.monotonic() + (SHARED_PATIENCE if shared else PATIENCE)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the last holder has just removed the folder
            if time.monotonic() > deadline:
                raise
            continue
        try:
            _lock(file, shared=shared)
            if _is_at(file, path):
                return file
            os.close(file)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace")
            os.close(file)
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{what} is being written by {holder if holder.startswith('process') else 'another process'}; wait "
                    "until it has ended, stop it, or choose another output."
                ) from None
            time.sleep(0.02)
        except OSError as error:
            os.close(file)
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: its file system has no locks (%s); let one process write at a time.", what, error)
            return None


@cache
def _warn_without_locks() -> None:
    logger.warning("Files are not locked on Windows; let one process at a time write a run, a store or a recording.")


def _lock(file: int, *, shared: bool, wait: bool = False) -> None:
    if sys.platform != "win32":
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _is_at(file: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
