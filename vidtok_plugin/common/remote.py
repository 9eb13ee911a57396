"""Objects at URLs that fsspec opens: listed, read by range and written whole, tried again after a failed connection."""

import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PAUSES = (0.5, 2.0)  # seconds before each further try
MAX_REMEMBERED = 200_000  # objects
MEMORY = 10.0  # seconds for which the size and version of an object are not asked again
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://(?P<place>[^/?#]*)(?P<key>.*)", re.DOTALL)
_SECRET = re.compile(r"""(?<=://)[^/\s@]*@|\?[^\s"')]*""")  # what may be one: user and password, and a query
_WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf", "memory")
_ACCOUNTS = ("abfs", "abfss", "wasb", "wasbs")  # CONTAINER@ACCOUNT is no password
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
# What changes with an object, by the backend's name for it; only the first one, since lists of objects have fewer.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "generation", "blob_id", "oid", "sha256"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object, or a folder of objects."""

    size: int
    folder: bool
    version: str  # another one after any change; of folders empty


Listing = Mapping[str, Entry]  # URL -> entry, of everything below a folder, and of the folders in it


def is_url(text: str) -> bool:
    """Whether a source is a URL and not a path.

    Example:
        >>> is_url("s3://bucket/videos"), is_url("videos/a.mp4"), is_url("c:/videos")
        (True, False, False)
    """
    return _URL.match(text) is not None


def check_url(url: str) -> None:
    """Check that a URL has no secrets, which would get into logs and stores.

    Raises:
        ValueError: it has a user, a password or a query.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"URL {masked(url)!r} must be SCHEME://PLACE/KEY, such as s3://bucket/videos; correct it.")
    named = "@" in match["place"] and match["scheme"] not in _ACCOUNTS
    if named or ":" in match["place"].partition("@")[0] and "@" in match["place"] or "?" in match["key"]:
        raise ValueError(
            f"URL {masked(url)} must not have a user, a password or a query; give credentials to its backend by "
            "environment variables or configuration files."
        )


def masked(text: str) -> str:
    """A text without the secrets that URLs in it may have.

    Example:
        >>> masked("s3://key:secret@bucket/a and https://host/b?token=1")
        's3://***@bucket/a and https://host/b?***'
    """
    return _SECRET.sub(lambda match: "?***" if match[0].startswith("?") else "***@", text)


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL. Asked for each time: one must not pass into a forked process.

    Raises:
        ValueError: there is no such backend, or its package is not installed.
    """
    import fsspec  # only where there are URLs

    scheme = url.partition("://")[0]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        package, extra = _EXTRAS.get(scheme, (None, None))
        needs = f"needs {package}" if package else f"needs a package ({masked(str(error))})"
        remedy = f"pip install 'vidtok-plugin[{extra}]'" if extra else "pip"
        raise ValueError(
            f"{masked(url)}: {scheme}:// {needs}, which is not installed; install it with: {remedy}."
        ) from None
    except ValueError:
        raise ValueError(
            f"{masked(url)}: fsspec has no backend for {scheme}://; give a path, or a URL such as s3://, gs:// or hf://."
        ) from None


def entry(url: str) -> Entry:
    """The object or folder at a URL, as in the listing that is open (`listed`), or as it was at most 10 s ago.

    Raises:
        FileNotFoundError: there is none.
        OSError: the connection failed.
    """
    url = url.rstrip("/")
    for root, found in _listings.get():
        if url == root or url.startswith(f"{root}/"):
            if url not in found:
                raise FileNotFoundError(errno.ENOENT, "There is no such object", masked(url))
            return found[url]
    known = _known.get(url)
    if known is None or time.monotonic() - known[0] > MEMORY:
        fs = filesystem(url)
        fs.invalidate_cache()  # some backends keep lists whatever they are told
        known = time.monotonic(), _entry(tried(url, lambda: fs.info(url)))
        _remember({url: known[1]})
    return known[1]


def listing(url: str) -> Listing:
    """Everything below a folder, as it is now; empty if there is nothing.

    Raises:
        OSError: the connection failed.
    """
    root = url.rstrip("/")
    for above, found in _listings.get():
        if root == above or root.startswith(f"{above}/"):
            return {place: entry for place, entry in found.items() if place == root or place.startswith(f"{root}/")}
    fs = filesystem(url)
    fs.invalidate_cache()

    def find() -> Mapping[str, Mapping[str, Any]]:
        try:
            found: Mapping[str, Mapping[str, Any]] = fs.find(root, detail=True)
            return found
        except FileNotFoundError:
            return {}

    base = str(fs._strip_protocol(root)).rstrip("/")
    entries: dict[str, Entry] = {}
    for name, info in tried(root, find).items():
        key = str(name).rstrip("/")
        below = key.removeprefix(base) if key == base or key.startswith(f"{base}/") else None
        if below is None or info.get("type") == "directory" or str(name).endswith("/"):
            continue  # also an object that stands for a folder
        entries[root + below] = _entry(info)
        folder = (root + below).rpartition("/")[0]
        while len(folder) >= len(root) and folder not in entries:
            entries[folder] = Entry(size=0, folder=True, version="")
            folder = folder.rpartition("/")[0]
    _remember(entries)
    return entries


@contextmanager
def listed(url: str) -> Iterator[Listing]:
    """Inside, `entry` answers from one listing of the folder, in place of a question for each object."""
    found = listing(url)
    token = _listings.set((*_listings.get(), (url.rstrip("/"), found)))
    try:
        yield found
    finally:
        _listings.reset(token)


def forget(url: str) -> None:
    """Ask for an object again, which was just written."""
    _known.pop(url.rstrip("/"), None)


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes of an object from `start` up to `end`; fewer at its end.

    Raises:
        FileNotFoundError: there is none.
        OSError: the connection failed.
    """
    fs = filesystem(url)
    return tried(url, lambda: bytes(fs.cat_file(url, start=start, end=end)))


def download(url: str, target: Path, size: int) -> None:
    """Copies an object of `size` bytes to a local file.

    Raises:
        FileNotFoundError: there is none.
        OSError: the connection failed, or the disk refuses.
    """
    fs = filesystem(url)

    def get() -> None:
        target.unlink(missing_ok=True)
        fs.get_file(url, str(target))
        if (got := target.stat().st_size) != size:
            raise ConnectionError(f"{got} of {size} bytes came")

    tried(url, get)


def upload(url: str, data: bytes | Path) -> None:
    """Writes an object whole: readers see the previous one, or none, until it is complete.

    Raises:
        OSError: the connection failed, or writing is not allowed.
    """
    fs = filesystem(url)
    folder, scheme = url.rpartition("/")[0], url.partition("://")[0]

    def put() -> None:
        if scheme not in _WITHOUT_FOLDERS:  # of which some would create a bucket
            fs.makedirs(folder, exist_ok=True)
        if isinstance(data, Path):
            fs.put_file(str(data), url)
        else:
            fs.pipe_file(url, data)

    tried(url, put, "written")
    forget(url)


def remove(url: str) -> None:
    """Removes an object, if there is one; raises an OSError if the connection failed."""
    fs = filesystem(url)

    def rm() -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(url)

    tried(url, rm, "removed")
    forget(url)


def tried(url: str, action: Callable[[], T], what: str = "read") -> T:
    """What an action on a URL gives, which is tried again if the connection fails.

    Raises:
        FileNotFoundError, PermissionError: of the backend, with the URL.
        OSError: it failed at each try.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except _FINAL as error:
            refused = isinstance(error, PermissionError)
            number = error.errno or (errno.EACCES if refused else errno.ENOENT)
            problem = "Access is refused; check the credentials" if refused else "There is no such object"
            raise type(error)(number, masked(error.strerror or problem), masked(url)) from None
        except Exception as error:
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise  # a bug; libraries' own errors are of connections
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            if pause is None:
                reason = (masked(str(error)).splitlines() or [""])[0].rstrip(".")
                raise OSError(
                    f"{masked(url)} could not be {what} in {len(PAUSES) + 1} tries ({type(error).__name__}: {reason}); "
                    "check the connection and the credentials, and run the same command again."
                ) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def _entry(info: Mapping[str, Any]) -> Entry:
    if info.get("type") == "directory":
        return Entry(size=0, folder=True, version="")
    size = int(info.get("size") or 0)
    known = next((info[name] for name in _VERSIONS if info.get(name) is not None), "")
    if isinstance(known, datetime):
        known = known.timestamp()  # lists and questions give one or the other
    text = f"{known:.6f}" if isinstance(known, float) else str(known).strip('"')
    version = hashlib.sha256(f"{size} {text}".encode()).hexdigest()
    return Entry(size=size, folder=False, version=version)


def _remember(entries: Listing) -> None:
    if len(_known) + len(entries) > MAX_REMEMBERED:
        _known.clear()
    now = time.monotonic()
    _known.update({url: (now, found) for url, found in entries.items()})


_listings: ContextVar[tuple[tuple[str, Listing], ...]] = ContextVar("listings", default=())
_known: dict[str, tuple[float, Entry]] = {}
