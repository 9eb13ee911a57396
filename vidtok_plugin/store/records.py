"""Records of written shards: a file for each shard, with the shard's digest, so that a lost or swapped one is noticed.

The records of a split are in `_written/SPLIT` beside the split's folder. A shard is written first, then its record.
A store that was written before shards had digests has no records.
"""

import os
from pathlib import Path

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.paths import is_regular_file

RECORDS = "_written"
REMEDY = "tokenize its videos again with `vidtok-plugin tokenize`, which writes it again"


def record_path(shard: Path) -> Path:
    """The record of the shard at this path."""
    split = shard.parent
    return type(split)(f"{split.parent}/{RECORDS}/{split.name}/{shard.name}")


def records_folder(split_folder: Path) -> Path:
    return split_folder.parent / RECORDS / split_folder.name


def write_record(shard: Path, digest: str) -> None:
    """Record that a shard was written."""
    with atomic_write(record_path(shard), concurrent=True) as partial:
        partial.write_text(f"{digest}\n", encoding="utf-8")


def recorded_splits(tokens_folder: Path) -> set[str]:
    """The splits of which shards were written."""
    folder = tokens_folder / RECORDS
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()


def read_record(shard: Path) -> str | None:
    """The digest of a shard when it was written; None if that was not recorded.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        path = os.fspath(record_path(shard))
        if not is_regular_file(path):
            raise ValueError(f"TokenStore: {path} must be a regular file; remove it and {REMEDY}.")
        with open(path, "rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
