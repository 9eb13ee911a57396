"""Local copies of objects at URLs, in the cache folder, within a bound: the least recently used ones go first."""

import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from uuid import uuid4

from vidtok_plugin.common.atomic_files import atomic_create
from vidtok_plugin.common.cache_folder import cache_folder
from vidtok_plugin.common.remote import Entry, download, entry, listing, masked

VARIABLE = "VIDTOK_CACHE_GB"
DEFAULT_GB = 20.0
ABANDONED = 86_400.0  # seconds after which a copy that is not complete belongs to a process that was killed
TOGETHER = 16
CHECKED = 0.01  # the fraction of the bound that may be fetched before it is checked again

_lock = threading.Lock()
_unchecked = float("inf")  # bytes fetched since the last check


def bound() -> float:
    """Bytes of all copies: `VIDTOK_CACHE_GB`, by default 20.

    Raises:
        ValueError: it is no number above 0.
    """
    text = os.environ.get(VARIABLE, "") or str(DEFAULT_GB)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{VARIABLE} must be a number above 0, got {text!r}; set it, or leave it out.")
    return value * 1e9


def local_file(url: str) -> Path:
    """A copy of an object as it is now.

    Raises:
        FileNotFoundError: there is none.
        IsADirectoryError: it is a folder.
        OSError: the connection failed, or the disk refuses.
        ValueError: it is larger than the bound.
    """
    found = entry(url)
    if found.folder:
        raise IsADirectoryError(f"{masked(url)} is a folder, not a file; give a file in it.")
    name = url.rpartition("/")[2]
    return _copy(url, {name: (url, found)}) / name


def fetch_together(urls: Sequence[str]) -> None:
    """Makes the copies of many small objects, some at a time; errors are those of `local_file`."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        # The context has the listing that is open.
        for fetched in [pool.submit(copy_context().run, local_file, url) for url in urls]:
            fetched.result()


def local_folder(url: str) -> Path:
    """A copy of a folder with everything below it, as it is now; its errors are those of `local_file`."""
    root = url.rstrip("/")
    files = {place[len(root) + 1 :]: (place, found) for place, found in listing(root).items() if not found.folder}
    if not files:
        raise FileNotFoundError(f"{masked(url)} doesn't exist, or is an empty folder; check the URL.")
    for name in files:
        if not name or ".." in name.split("/"):
            raise ValueError(f"{masked(url)} has an object whose name is no path, {name!r}; rename it.")
    return _copy(root, files) / "folder"


def _copy(url: str, files: dict[str, tuple[str, Entry]]) -> Path:
    """The folder in the cache with these files."""
    facts = " ".join(f"{name} {found.version}" for name, (_, found) in sorted(files.items()))
    folder = copies() / hashlib.sha256(f"{url} {facts}".encode()).hexdigest()[:32]
    whole = len(files) != 1 or next(iter(files)) != url.rpartition("/")[2] or next(iter(files.values()))[0] != url
    total = sum(found.size for _, found in files.values())
    if total > bound():
        raise ValueError(
            f"{masked(url)} has {total / 1e9:.3g} GB, more than the cache may hold, {bound() / 1e9:.3g} GB; raise "
            f"{VARIABLE}."
        )

    def fetch(partial: Path) -> None:
        for name, (place, found) in files.items():
            target = partial / "folder" / name if whole else partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            download(place, target, found.size)

    if atomic_create(folder, fetch):
        _keep_bound(folder, total)
    else:
        os.utime(folder)  # recently used
    return folder


def copies() -> Path:
    """The folder of all copies."""
    return cache_folder() / "copies"


def _keep_bound(newest: Path, size: int) -> None:
    """Removes the least recently used copies beyond the bound, but not the newest."""
    global _unchecked
    with _lock:
        _unchecked += size
        if _unchecked < CHECKED * bound():
            return
        _unchecked = 0.0
    found = []
    for path in copies().iterdir():
        try:
            if not path.name.startswith("."):
                found.append((path.stat().st_mtime_ns, path, _size(path)))
            elif time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # removed by another process
            continue
    excess = sum(bytes_ for _, _, bytes_ in found) - bound()
    for _, path, bytes_ in sorted(found):
        if excess <= 0:
            return
        if path != newest:
            _remove(path)
            excess -= bytes_


def _size(folder: Path) -> int:
    return sum(os.stat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def _remove(folder: Path) -> None:
    """In one step for others: a copy is whole or gone. What is mapped or open stays readable."""
    gone = folder.with_name(f".{folder.name}.gone-{uuid4().hex}")
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return
    except PermissionError:
        if sys.platform != "win32":
            raise
        return  # a file of it is open, and Windows keeps such folders; it is removed at a later time
    shutil.rmtree(gone, ignore_errors=True)
