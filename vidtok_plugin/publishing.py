"""Files and folders that appear whole or not at all, by whichever of several processes is first."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

_PARTIAL = re.compile(r"\.(?P<name>.+)\.part(-[0-9a-f]+)?")


def publish(path: Path, write: Callable[[Path], object]) -> bool:
    """Let `write` make a file or a folder beside `path`, and give it that name once it is whole on the disk.

    -> False if `path` was there already, or another process was first: a folder that is there is never replaced.
    Of files that two processes write at the same moment, the last stays.
    """
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part-{uuid4().hex}")  # no two processes share one
    try:
        write(partial)
        _flush(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError):  # RuntimeError: torch's for a folder that `remove_partials` removed meanwhile
        if not path.exists():
            raise
        return False
    finally:
        _remove(partial)
    return True


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left of files and folders that are there by now."""
    for path in folder.glob(".*"):
        match = _PARTIAL.fullmatch(path.name)
        if match and (folder / match["name"]).exists():
            _remove(path)


def _flush(path: Path) -> None:
    """Onto the disk, so that after a power failure no name stands for contents that were never written."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it, too
    else:
        path.unlink(missing_ok=True)
