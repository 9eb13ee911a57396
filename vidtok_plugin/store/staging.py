"""A token store at a URL: written in a local folder, and uploaded object by object, so that readers never see a part.

Each shard is one object, which appears when it is complete, and its record after it; store.json comes last, since it
names all others. So a reader finds complete tokens at any time, previous or new, as in a local store.

The local folder stays in the cache folder: a next run uploads and downloads only what has changed. It may be removed.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.cache_folder import cache_folder
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.remote import download, entry, listing, remove, upload
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.store.metadata import METADATA_FILE
from vidtok_plugin.store.records import RECORDS

logger = logging.getLogger(__name__)

T = TypeVar("T")

INTERVAL = 5.0  # seconds between uploads while a store is written
STATE = ".uploaded.json"  # what is at the URL: name -> size and time of the local file, version of the object


def written_at(output: str | Path, write: Callable[[Path], T]) -> T:
    """Calls `write` with the folder to write a store in: `output`, or for a URL a local one that becomes the URL's.

    Raises:
        ValueError: another command on this machine writes the same URL.
        OSError: the connection failed.
    """
    output = as_path(output)
    if not isinstance(output, UrlPath):
        return write(output)
    with _staged(str(output).rstrip("/")) as folder:
        return write(folder)


@contextmanager
def _staged(url: str) -> Iterator[Path]:
    folder = cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]
    with FolderLock(folder, name=".url.lock"):
        mirror = _Mirror(folder, url)
        mirror.pull()
        done = threading.Event()
        uploads = threading.Thread(target=mirror.push_until, args=(done,), daemon=True)
        uploads.start()
        try:
            yield folder
        finally:
            done.set()
            uploads.join()
        mirror.push()
        mirror.remove_gone()


class _Mirror:
    """A folder and the URL that is to have the same files."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self._file = folder / STATE
        self._state: dict[str, list[object]] = {}
        if self._file.is_file():
            try:
                self._state = dict(json.loads(self._file.read_text(encoding="utf-8")))
            except ValueError:
                logger.warning("%s is damaged; comparing anew with %s", self._file, url)

    def pull(self) -> None:
        """Downloads what has changed at the URL, and removes what was removed there."""
        there = {place[len(self.url) + 1 :]: found for place, found in listing(self.url).items() if not found.folder}
        for name, found in there.items():
            if any(part.startswith(".") or not part for part in name.split("/")):
                raise ValueError(f"{self.url}: a store's objects must have plain names, got {name!r}; remove it.")
            path = self.folder / name
            if self._state.get(name, ["", "", ""])[2] != found.version or not path.is_file():
                with atomic_write(path) as partial:
                    download(f"{self.url}/{name}", partial, found.size)
                self._note(name, found.version)
        for name in self._state.keys() - there.keys():
            path = self.folder / name
            path.unlink(missing_ok=True)
            while path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path = path.parent
                path.rmdir()
            del self._state[name]
        self._save()

    def push_until(self, done: threading.Event) -> None:
        """Uploads again and again what has been completed; failures are left to the last upload."""
        while not done.wait(INTERVAL):
            try:
                self.push()
            except (OSError, ValueError) as error:
                logger.warning("%s Trying again later.", error)

    def push(self) -> None:
        """Uploads what is complete and has changed, in the order in which readers need it."""
        # Read in the opposite order: what store.json and the records name was complete before them.
        last = self._small([self.folder / METADATA_FILE])
        records = self._small(self.folder.glob(f"*/{RECORDS}/*/*"))
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if not hidden and name != METADATA_FILE and f"/{RECORDS}/" not in name and path.is_file():
                self._upload(name, path)
        for name, content in {**records, **last}.items():
            self._upload(name, content)
        self._save()

    def remove_gone(self) -> None:
        """Removes at the URL what has been removed here: previous tokens, after an update."""
        for name in [name for name in self._state if not (self.folder / name).exists()]:
            remove(f"{self.url}/{name}")
            del self._state[name]
        self._save()

    def _small(self, paths: "Iterator[Path] | list[Path]") -> dict[str, bytes]:
        """The contents of those of these files that have changed."""
        found = {}
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not path.name.startswith(".") and self._state.get(name, [])[:2] != _facts(path):
                found[name] = path.read_bytes()
        return found

    def _upload(self, name: str, content: Path | bytes) -> None:
        path = self.folder / name
        facts = _facts(path)
        if self._state.get(name, [])[:2] == facts:
            return
        upload(f"{self.url}/{name}", content)
        self._state[name] = [*facts, entry(f"{self.url}/{name}").version]

    def _note(self, name: str, version: str) -> None:
        self._state[name] = [*_facts(self.folder / name), version]

    def _save(self) -> None:
        with atomic_write(self._file) as partial:
            partial.write_text(json.dumps(self._state), encoding="utf-8")


def _facts(path: Path) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
