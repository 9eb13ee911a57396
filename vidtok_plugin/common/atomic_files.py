"""Files and folders that appear complete or not at all, also after a kill or a power failure."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, or the size of files
REFUSED = (*FULL, errno.EROFS, errno.EIO)
_PARTIAL = re.compile(r"\.(?P<name>.+)\.part(-[0-9a-f]+)?")


@contextmanager
def atomic_write(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file or folder written there is renamed to `path` at the end.

    A file at `path` is replaced in one step, so readers see either the old or the new contents. After an error `path`
    is as before and the temporary file is removed.

    concurrent: other processes may write `path` at the same time. Each then has a temporary path of its own, and the
        last to finish wins. Otherwise the name is fixed, and the next write reuses what a killed process left.

    Raises:
        OSError: `path` is a non-empty folder, or the disk refuses.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "report.json") as partial:
        ...         _ = partial.write_text("{}")
        ...     os.listdir(folder)
        ['report.json']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path, concurrent=concurrent)
    try:
        with naming(path):
            yield partial
            put_in_place(partial, path)
    finally:
        _remove(partial)


def atomic_create(path: Path, write: Callable[[Path], object]) -> bool:
    """Calls `write` with a temporary path and renames the result to `path`, unless `path` exists.

    Any number of processes may do so at the same time. A folder that exists is never replaced; of files written at
    the same moment, the last stays.

    Returns:
        False if `path` existed, or another process created it first.
    """
    if path.exists():
        return False
    try:
        with atomic_write(path, concurrent=True) as partial:
            write(partial)
    # Not only OSError: torch and safetensors raise the others when `remove_partials` has removed the folder.
    except (OSError, RuntimeError, SafetensorError):
        if not path.exists():
            raise
        return False
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an error of the system in writing `path` an OSError that names it.

    Libraries report such errors by types of their own, without the file, or with its temporary name.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        found = _system_error(error)
        if found is None:
            raise
        name = path if found.filename is None else os.fsdecode(found.filename)
        temporary = re.escape(str(path.with_name(f".{path.name}.part"))) + "(-[0-9a-f]+)?"
        raise OSError(found.errno, found.strerror, re.sub(temporary, lambda _: str(path), str(name))) from error


def _system_error(error: BaseException) -> OSError | None:
    """The error of the system that a library's error stands for; None if there is none."""
    if isinstance(error, SafetensorError):
        match = re.search(r"(?:os error|code:) (\d+)", str(error))  # code: safetensors 0.5
        return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None
    if isinstance(error, OSError):
        if error.errno is None and " requested and " in str(error):  # numpy's
            return OSError(errno.EIO, f"Only a part could be written ({error}); the disk may be full")
        return None if error.errno is None else error
    cause = error.__cause__ or error.__context__  # torch's: somewhere in its chain
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in REFUSED:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def partial_path(path: Path, *, concurrent: bool = False) -> Path:
    """The temporary path of `atomic_write`, for a writer that stays open; `put_in_place` completes it."""
    return path.with_name(f".{path.name}.part{f'-{uuid4().hex}' if concurrent else ''}")


def put_in_place(partial: Path, path: Path) -> None:
    """Flushes the temporary file or folder to the disk and renames it to `path`."""
    _flush(partial)
    os.replace(partial, path)
    _sync(path.parent)  # the name, too: the caller may remove an old version next


def remove_partials(folder: Path) -> None:
    """Removes the temporary files that killed processes left, where the complete file or folder exists by now."""
    for path in folder.glob(".*"):
        match = _PARTIAL.fullmatch(path.name)
        if match and (folder / match["name"]).exists():
            _remove(path)


def _flush(path: Path) -> None:
    """Syncs all files, so that after a power failure no name refers to contents that were never written."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        _sync(file)


def _sync(path: Path) -> None:
    windows = sys.platform == "win32"
    if windows and path.is_dir():  # it cannot be opened there, and needs no flushing
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it, too
    else:
        path.unlink(missing_ok=True)
