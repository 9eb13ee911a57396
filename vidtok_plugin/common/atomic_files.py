"""Files and folders that appear whole or not at all, by whichever of several processes is first."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

_PARTIAL = re.compile(r"\.(?P<name>.+)\.part(-[0-9a-f]+)?")


def atomic_create(path: Path, write: Callable[[Path], object]) -> bool:
    """Let `write` make a file or a folder beside `path`, and give it that name once it is whole on the disk.

    -> False if `path` was there already, or another process was first: a folder that is there is never replaced.
    Of files that two processes write at the same moment, the last stays.
    """
    if path.exists():
        return False
    try:
        atomic_replace(path, write)
    # Not OSError alone: these are torch's and safetensors' for a folder that `remove_partials` removed meanwhile.
    except (OSError, RuntimeError, SafetensorError):
        if not path.exists():
            raise
        return False
    return True


def atomic_replace(path: Path, write: Callable[[Path], object]) -> None:
    """As `atomic_create`, but a file that is there is replaced, at once; an OSError if a folder is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part-{uuid4().hex}")  # no two processes share one
    try:
        write(partial)
        _flush(partial)
        os.replace(partial, path)
        _sync(path.parent)  # the name as well: what it takes the place of may be removed next
    finally:
        _remove(partial)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left of files and folders that are there by now."""
    for path in folder.glob(".*"):
        match = _PARTIAL.fullmatch(path.name)
        if match and (folder / match["name"]).exists():
            _remove(path)


def _flush(path: Path) -> None:
    """Onto the disk, so that after a power failure no name stands for contents that were never written."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        _sync(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it, too
    else:
        path.unlink(missing_ok=True)
