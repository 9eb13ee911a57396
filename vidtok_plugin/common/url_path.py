"""Paths of objects at URLs, for whatever takes a Path to read.

A name is a URL's, so `path.parent / "a.json"` and messages are as for files. Questions (`exists`, `iterdir`, ...) go to
the backend. Whatever opens the path as a local file gets a copy in the bounded cache; `open` reads large objects by
range. Nothing can be written through it.
"""

import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, NoReturn

from vidtok_plugin.common.remote import check_url, entry, is_url, listing, masked, read_range
from vidtok_plugin.common.remote_cache import local_file, local_folder

WHOLE = 64 << 20  # bytes up to which an object is copied when it is opened; larger ones are read by range
BLOCK, BLOCKS = 2 << 20, 4  # bytes read at once, and how many of these an open object holds
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+):/(?!/)")


class UrlPath(type(Path())):  # type: ignore[misc]
    """A path below a URL; `relative_to` gives one without.

    Example:
        >>> path = UrlPath("memory://videos/a.mp4")
        >>> str(path.with_suffix(".json")), str(path.relative_to(UrlPath("memory://videos")))
        ('memory://videos/a.json', 'a.mp4')
    """

    __slots__ = ()

    def __str__(self) -> str:
        return _SCHEME.sub(r"\1://", super().__str__())

    def __fspath__(self) -> str:
        """The path of a local copy."""
        return os.fspath(local_file(str(self)))

    def resolve(self, strict: bool = False) -> "UrlPath":
        return self

    def absolute(self) -> "UrlPath":
        return self

    def exists(self, **_: Any) -> bool:
        if not is_url(str(self)):  # above what a URL names
            return False
        try:
            entry(str(self))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_file(self, **_: Any) -> bool:
        return self.exists() and not entry(str(self)).folder

    def is_dir(self, **_: Any) -> bool:
        return self.exists() and entry(str(self)).folder

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        """With the size only."""
        found = entry(str(self))
        return os.stat_result((0o40555 if found.folder else 0o100444, 0, 0, 1, 0, 0, found.size, 0, 0, 0))

    def iterdir(self) -> Iterator["UrlPath"]:
        names = dict.fromkeys(path.relative_to(self).parts[0] for path in self.files())
        return (self / name for name in names)

    def files(self) -> Iterator["UrlPath"]:
        """All files below, in order."""
        return (type(self)(url) for url, found in sorted(listing(str(self)).items()) if not found.folder)

    def glob(self, pattern: str, **_: Any) -> Iterator["UrlPath"]:
        """The files and folders below that match, part by part; `**` is not understood."""
        parts = pattern.split("/")
        if "**" in parts:
            raise ValueError(f"{self}: patterns of URLs must not have **, got {pattern!r}; name the folder.")
        found = dict.fromkeys(
            path.relative_to(self).parts[: len(parts)]
            for path in self.files()
            if len(path.relative_to(self).parts) >= len(parts)
        )
        return (self.joinpath(*names) for names in found if all(map(fnmatchcase, names, parts)))

    def open(self, mode: str = "r", *arguments: Any, **settings: Any) -> IO[Any]:
        if set(mode) & set("wax+"):
            self.refuse()
        if entry(str(self)).size <= WHOLE:
            return open(os.fspath(self), mode, *arguments, **settings)
        file = io.BufferedReader(RangeFile(str(self)), BLOCK)
        return file if "b" in mode else io.TextIOWrapper(file, *arguments, **settings)

    def mkdir(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse()

    def unlink(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the ValueError about output that must be local."""
        raise ValueError(f"{self}: nothing but token stores can be written to a URL; give a local path.")


class RangeFile(io.RawIOBase):
    """An object that is open to be read by range; it holds the last blocks that were read."""

    def __init__(self, url: str) -> None:
        self.url, self._opened = url, entry(url)
        self.size = self._opened.size
        self._place = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        number, offset = divmod(self._place, BLOCK)
        if self._place >= self.size:
            return 0
        data = self._block(number)[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int | slice) -> Any:
        """Bytes by number, as of a mapped file."""
        if isinstance(place, int):
            if not 0 <= place < self.size:
                raise IndexError(place)
            return self._block(place // BLOCK)[place % BLOCK]
        start, stop, step = place.indices(self.size)
        self.seek(start)
        return self.readall_until(stop)[::step]

    def readall_until(self, stop: int) -> bytes:
        """The bytes from here up to a place."""
        parts = []
        while self._place < stop and (part := self.read(min(stop - self._place, BLOCK))):
            parts.append(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            end = min(self.size, (number + 1) * BLOCK)
            data = read_range(self.url, number * BLOCK, end)
            if len(data) != end - number * BLOCK or entry(self.url) != self._opened:
                raise OSError(f"{masked(self.url)} has changed while it was read; run the same command again.")
            while len(self._blocks) >= BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[number] = data
        self._blocks.move_to_end(number)
        return self._blocks[number]


def ranged(path: str | os.PathLike[str]) -> RangeFile | None:
    """A large object, open to be read by range; None for a small one and for a local file."""
    return RangeFile(str(path)) if isinstance(path, UrlPath) and entry(str(path)).size > WHOLE else None


def local_copy(path: Path) -> Path:
    """A local copy of the object or folder at a URL; another path as it is."""
    if not isinstance(path, UrlPath) or not path.exists():
        return path
    return local_folder(str(path)) if path.is_dir() else local_file(str(path))


def url_path(url: str) -> UrlPath:
    """A URL as a path; a ValueError if it has secrets, see `check_url`."""
    check_url(url)
    return UrlPath(url)
