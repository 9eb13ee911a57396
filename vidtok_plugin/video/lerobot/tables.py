"""Parquet and JSON-lines files of a LeRobot dataset, read whole and checked for the columns that are needed."""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

FIX = "download or write the dataset again"
NO_PYARROW = (
    "reading a LeRobot dataset needs pyarrow, which is not installed; install it with: pip install "
    "'vidtok-plugin[lerobot]'."
)


def read_rows(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a parquet or JSON-lines file, with the columns `needed` and those of `optional` that it has.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged or lacks a column, or pyarrow is missing.
    """
    if path.suffix == ".jsonl":
        rows = _read_lines(path)
    else:
        table = read_table(path)
        rows = table.select([name for name in table.column_names if name in {*needed, *optional}]).to_pylist()
    for row in rows:
        for name in needed:
            if row.get(name) is None:
                raise ValueError(f"LeRobot dataset: {path} must have a value of {name} in each row, got none; {FIX}.")
    return rows


def read_table(path: Path) -> "pyarrow.Table":
    """A parquet file, without its columns of statistics; the last ones read are kept. Errors as in `read_rows`."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"LeRobot dataset: {path} is missing; {FIX}.") from None
    return _read_table(os.fspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_table(path: str, mtime: int, size: int) -> "pyarrow.Table":
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise ValueError(NO_PYARROW) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            return file.read(columns=names, use_threads=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"LeRobot dataset: {path} cannot be read ({_first_line(error)}); {FIX}.") from None


def column(table: "pyarrow.Table", name: str, path: Path) -> np.ndarray:
    """A column of numbers, truth values or equally long lists of them, `(rows,)` or `(rows, k)`.

    Raises:
        ValueError: it is something else.
    """
    try:
        values = np.array(table.column(name).to_pylist())
    except ValueError:
        values = np.empty(0, object)
    if table.num_rows and (values.dtype.kind not in "biuf" or values.ndim > 2):
        raise ValueError(
            f"LeRobot dataset: {path} must have numbers, or lists of one length, in the column {name}, got "
            f"{table.schema.field(name).type}; {FIX}."
        )
    return values


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise FileNotFoundError(f"LeRobot dataset: {path} is missing; {FIX}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"LeRobot dataset: {path} cannot be read ({_first_line(error)}); {FIX}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"LeRobot dataset: {path} must have a JSON object in each line; {FIX}.")
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
