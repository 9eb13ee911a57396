"""Paths as users write them: `~` and environment variables, and URLs."""

import os
import re
import stat
from pathlib import Path

from vidtok_plugin.common.remote import is_url
from vidtok_plugin.common.url_path import UrlPath, url_path

_UNSET = re.compile(r"\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")


def expand(path: str) -> str:
    """Replaces `~`, `~user`, `$NAME` and `${NAME}` in a path; one that exists as it is written stays.

    Raises:
        ValueError: there is no such user, or the variable is not set.

    Example:
        >>> os.environ["DATA"] = "/data"
        >>> expand("$DATA/*/train")
        '/data/*/train'
    """
    if "~" not in path and "$" not in path or os.path.lexists(path):
        return path
    expanded = os.path.expandvars(os.path.expanduser(path))
    user = path.split("/")[0]
    if user.startswith("~") and expanded.split("/")[0] == user:
        raise ValueError(f"path {path}: there is no user {user}; for a folder of this name write ./{path}.")
    if unset := _UNSET.search(expanded):
        raise ValueError(f"path {path}: the variable {unset[0]} must be in the environment; set it, or write it out.")
    return expanded


def is_regular_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is a file that can be opened: a FIFO would wait forever. An OSError if it does not exist."""
    return stat.S_ISREG(os.stat(path).st_mode)


def user_path(path: str | os.PathLike[str]) -> Path:
    """`expand` as a Path, also of a URL.

    Raises:
        ValueError: as in `expand`, or a URL has a user, a password or a query.
    """
    if isinstance(path, UrlPath):
        return path
    expanded = expand(os.fspath(path))
    return url_path(expanded) if is_url(expanded) else Path(expanded)


def as_path(path: str | os.PathLike[str]) -> Path:
    """A Path as it is, a text as a Path, without `expand`; a URL as by `user_path`."""
    if isinstance(path, Path):
        return path
    text = os.fspath(path)
    return url_path(text) if is_url(text) else Path(text)


def local_output(path: str | os.PathLike[str]) -> Path:
    """`as_path` of what is to be written; a ValueError for a URL."""
    path = as_path(path)
    if isinstance(path, UrlPath):
        path.refuse()
    return path
