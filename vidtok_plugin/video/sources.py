"""Finding the videos that an entry of a config names: a folder, a pattern, a file, or a CSV list."""

import csv
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtok_plugin.video.episodes import VIDEO_SUFFIXES, find_videos

CSV_COLUMN = "videos"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos that are drawn from with one weight, relative to the other sources' weights."""

    name: str
    videos: tuple[Path, ...]
    weight: float = 1.0


def find_sources(
    entries: Sequence[str], weights: Sequence[float] | None = None, *, root: str | os.PathLike[str] | None = None
) -> list[Source]:
    """The videos that each entry names: all of a folder and its subfolders, one file, or those of a CSV list.

    An entry may be a pattern such as `data/*/train` or `data/**/*.mp4` that names several, among which its weight is
    shared equally; the video files that it names itself count as one. `root` is where the relative paths in CSV
    lists start, which is the list's own folder by default.

    Raises:
        FileNotFoundError: a folder, file or list that is missing, or has or matches no videos.
        ValueError: weights that don't fit, or a list that is no such CSV.
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
        named = _named_by(entry, root)
        sources += [Source(name=name, videos=videos, weight=weight / len(named)) for name, videos in named.items()]
    return sources


def read_csv(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The paths in the column `videos` of a CSV file with a header, in its order; other columns are ignored.

    The file is UTF-8 or else Latin-1. Relative paths start at `root`, by default at the file's folder. Whether the
    videos exist isn't looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such column, or a row without a value in it.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"CSV list {path} doesn't exist; check the path.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    folder = file.parent if root is None else Path(root)
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
                        f"{where}: one column must be named {CSV_COLUMN!r}, got the columns {', '.join(header)}; put"
                        " a header in the first line, with commas between the names."
                    )
            elif len(row) > len(header):
                raise ValueError(
                    f"{where}: a row must have a value for each of the {len(header)} columns, got {len(row)}; put"
                    ' values that have a comma in them into "quotes".'
                )
            else:
                column = header.index(CSV_COLUMN)
                value = row[column].strip() if column < len(row) else ""
                if not value:
                    raise ValueError(f"{where}: {CSV_COLUMN} must be a path, got nothing; fill it in or drop the row.")
                videos.append(folder / value)
    except csv.Error as error:
        raise ValueError(f"CSV list {path}, line {reader.line_num}: {error}; check the quotes there.") from None
    if not videos:
        raise ValueError(
            f"CSV list {path} has no videos; it needs a header with the column {CSV_COLUMN!r} and a row for each video."
        )
    return videos


def _named_by(entry: str, root: str | os.PathLike[str] | None) -> dict[str, tuple[Path, ...]]:
    """The videos that one entry names, by the folder, the list or the pattern that they are found by."""
    if os.path.exists(entry) or not glob.has_magic(entry):
        return {entry: _videos_of(entry, root)}
    paths = [Path(found) for found in sorted(glob.glob(entry, recursive=True))]
    inside: set[Path] = set()  # folders that are searched already, with all that is in them
    named: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        if path.is_dir() and not inside.intersection(path.parents):
            inside.add(path)
            named[str(path)] = _videos_of(str(path), root)
        elif path.is_file() and path.suffix.lower() == ".csv":
            named[str(path)] = _videos_of(str(path), root)
    files = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if alone := tuple(path for path in files if not inside.intersection(path.parents)):
        named[entry] = alone
    if not named:
        raise FileNotFoundError(
            f"Pattern {entry} matches {len(paths)} files and folders, but no folder, no CSV list and no file that ends"
            f" in {', '.join(VIDEO_SUFFIXES)}; check the pattern."
        )
    return named


def _videos_of(path: str, root: str | os.PathLike[str] | None) -> tuple[Path, ...]:
    if path.lower().endswith(".csv") and not os.path.isdir(path):
        return tuple(read_csv(path, root))
    if not os.path.exists(path):
        raise FileNotFoundError(f"Folder or file {path} doesn't exist; check the path, or record or copy videos there.")
    if os.path.isfile(path):
        return (Path(path),)
    return tuple(find_videos(path))
