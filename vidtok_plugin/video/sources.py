"""Resolving config entries to videos: folders, datasets, glob patterns, video files and CSV lists."""

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtok_plugin.common.paths import as_path, expand, user_path
from vidtok_plugin.common.remote import is_url
from vidtok_plugin.video.array_files import ARRAY_SUFFIXES
from vidtok_plugin.video.cameras import Cameras
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.episodes import VIDEO_SUFFIXES, walk_once
from vidtok_plugin.video.opening import has_cameras, open_videos
from vidtok_plugin.video.video_file import VideoFile

CSV_COLUMN = "videos"
FILE_SUFFIXES = (*VIDEO_SUFFIXES, *ARRAY_SUFFIXES)
Videos = tuple[Path | Episode, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos that are sampled together with one weight, relative to those of other sources."""

    name: str
    videos: Videos  # a path is that of a video file
    weight: float = 1.0


def find_sources(
    entries: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    camera: Cameras | None = None,
) -> list[Source]:
    """The videos of each entry: those of whatever `open_videos` takes, or of a CSV list.

    An entry may also be a pattern such as `data/*/train` or `data/**/*.mp4`. Its weight is divided equally among the
    folders and lists that match; all video files that match count as one source. `~` and environment variables are
    replaced. Relative paths in CSV lists start at `root`, by default at the list's own folder. `camera` is for entries
    that are LeRobot datasets.

    Raises:
        FileNotFoundError: a folder, file or list does not exist, or an entry has no videos.
        ValueError: weights don't fit the entries, a CSV list or a dataset is invalid, or no entry has cameras.
    """
    if isinstance(entries, str):
        raise ValueError(f"find_sources: entries must be a list, got the string {entries!r}; write [{entries}].")
    if weights is not None and (len(weights) != len(entries) or any(weight <= 0 for weight in weights)):
        raise ValueError(
            f"find_sources: weights must be one positive number for each of the {len(entries)} entries, got"
            f" {list(weights)}."
        )
    sources = []
    for entry, weight in zip(entries, weights or [1.0] * len(entries), strict=True):
        named = _named_by(expand(entry), None if root is None else user_path(root), camera)
        sources += [Source(name=name, videos=videos, weight=weight / len(named)) for name, videos in named.items()]
    if camera is not None and all(isinstance(video, Path) for source in sources for video in source.videos):
        raise ValueError(
            f"find_sources: camera is for datasets with several, but none of {', '.join(entries)} is one, got "
            f"{camera!r}; leave camera out."
        )
    return sources


def read_csv(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The paths in the column `videos` of a CSV file with a header, in order; other columns are ignored.

    Paths may have `~` and environment variables. The file is UTF-8, or else Latin-1. Relative paths start at `root`, by
    default at the file's folder. Whether the videos exist is not checked.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the column is missing, or a row has no value in it.
    """
    file = as_path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"CSV list {path} doesn't exist; check the path.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    folder = file.parent if root is None else as_path(root)
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] | None = None
    videos: list[Path] = []
    try:
        for row in reader:
            where = f"CSV list {path}, line {reader.line_num}"
            if not any(value.strip() for value in row):
                continue
            if header is None:
                header = [name.strip() for name in row]
                if header.count(CSV_COLUMN) != 1:
                    raise ValueError(
                        f"{where}: one column must be named {CSV_COLUMN!r}, got the columns {', '.join(header)}; start"
                        " the file with a header of comma-separated names."
                    )
            elif len(row) > len(header):
                raise ValueError(
                    f"{where}: a row must have a value for each of the {len(header)} columns, got {len(row)}; put"
                    ' values that contain commas in "quotes".'
                )
            else:
                column = header.index(CSV_COLUMN)
                value = row[column].strip() if column < len(row) else ""
                if not value:
                    raise ValueError(f"{where}: {CSV_COLUMN} must be a path, got nothing; add it or remove the row.")
                videos.append(user_path(value) if is_url(value) else folder / expand(value))
    except csv.Error as error:
        raise ValueError(f"CSV list {path}, line {reader.line_num}: {error}; check the quotes there.") from None
    if not videos:
        raise ValueError(
            f"CSV list {path} has no videos; it needs a header with the column {CSV_COLUMN!r} and a row per video."
        )
    return videos


def _named_by(entry: str, root: Path | None, camera: Cameras | None) -> dict[str, Videos]:
    """The videos of one entry, by the folder, list or pattern through which they are found."""
    if is_url(entry) or os.path.exists(entry) or not glob.has_magic(entry):
        return {entry: _videos_of(entry, root, camera)}
    paths = _once(Path(found) for found in sorted(_matching(entry)))
    inside: set[Path] = set()  # folders whose videos are included already
    named: dict[str, Videos] = {}
    for path in paths:
        if path.is_dir() and not inside.intersection(path.parents):
            inside.add(path)
            named[str(path)] = _videos_of(str(path), root, camera)
        elif path.is_file() and path.suffix.lower() == ".csv":
            named[str(path)] = _videos_of(str(path), root, camera)
    files = [path for path in paths if path.suffix.lower() in FILE_SUFFIXES and path.is_file()]
    alone = [path for path in files if not inside.intersection(path.parents)]
    if alone:
        named[entry] = tuple(video for path in alone for video in _videos_of(str(path), root, camera))
    if not named:
        raise FileNotFoundError(
            f"Pattern {entry} matches {len(paths)} files and folders, but no folder, no CSV list and no file that ends"
            f" in {', '.join(FILE_SUFFIXES)}; check the pattern."
        )
    return named


def _matching(pattern: str) -> Iterator[str]:
    """As glob's, but `**` enters each folder once: folders that link to each other have endlessly many paths."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    first = parts.index("**")
    rest = parts[first + 1 :]
    for start in glob.glob(os.path.join(*parts[:first])) if first else ["."]:
        for folder, files in walk_once(Path(start)) if os.path.isdir(start) else ():
            below = "" if folder == "." else folder.removeprefix("./") if not first else folder
            if rest:
                yield from _matching(os.path.join(glob.escape(below), *rest))
            else:
                yield from (os.path.join(below, name) for name in ("", *files) if not name.startswith("."))


def _once(paths: Iterable[Path]) -> list[Path]:
    """Paths without those that lead to the same file or folder by a link, such as to a folder above."""
    found: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real not in found or len(path.parts) < len(found[real].parts):
            found[real] = path
    return sorted(found.values())


def _videos_of(path: str, root: Path | None, camera: Cameras | None) -> Videos:
    file = as_path(path)
    if file.suffix.lower() == ".csv" and not file.is_dir():
        return tuple(read_csv(path, root))
    if not file.exists():
        raise FileNotFoundError(f"Folder or file {path} doesn't exist; check the path, or record or copy videos there.")
    if file.is_file() and file.suffix.lower() not in ARRAY_SUFFIXES:
        return (file,)
    episodes = open_videos(path, camera if has_cameras(file) else None)
    return tuple(episode.path if isinstance(episode, VideoFile) else episode for episode in episodes)
