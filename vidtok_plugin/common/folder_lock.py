"""FolderLock: refuses a second writer of an output folder. The lock ends with its process, however that ends."""

import errno
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
PATIENCE = 1.0  # seconds to wait for a lock that may be held for a moment only
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # by a network file system


class FolderLock:
    """While it is held, no other process, and no other thread of this one, can lock the folder.

    The operating system releases the lock of a process that is killed. The file `FOLDER/.lock` names the holder; it is
    removed at the end, and so is the folder if the lock created it and nothing was written there.

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

    def __init__(self, folder: str | os.PathLike[str], *, shared: bool = False) -> None:
        self.folder = Path(folder)
        self.shared = shared
        self._file: int | None = None
        self._created: list[Path] = []

    def __enter__(self) -> Self:
        self._created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        deadline = time.monotonic() + PATIENCE
        while not self._acquired(deadline):
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if self.alone():
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:  # it has contents, or is gone
                break

    def alone(self) -> bool:
        """Whether no other process holds a shared lock. If so, none can get one from now on."""
        if self._file is None:
            return True
        try:
            _lock(self._file, shared=False)
        except BlockingIOError:
            _lock(self._file, shared=True, wait=True)  # a failed change of a lock gives it up
            return False
        return True

    @property
    def _path(self) -> Path:
        return self.folder / LOCK_FILE

    def _acquired(self, deadline: float) -> bool:
        if sys.platform == "win32":
            logger.warning("%s: locks are not supported on this system; let one process write at a time.", self.folder)
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last holder has just removed the folder
            return False
        try:
            _lock(file, shared=self.shared)
            if not _is_at(file, self._path):  # its last holder has removed it
                os.close(file)
                return False
            if not self.shared:
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace") or "another process"
            os.close(file)
            if time.monotonic() < deadline:
                return False
            raise ValueError(
                f"{self.folder} is being written by {holder}; wait until it has ended, stop it, or choose another "
                "output folder."
            ) from None
        except OSError as error:
            os.close(file)
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning(
                "%s: its file system has no locks (%s); let one process write there at a time.", self.folder, error
            )
            return True
        self._file = file
        return True


def _lock(file: int, *, shared: bool, wait: bool = False) -> None:
    if sys.platform != "win32":
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _is_at(file: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
