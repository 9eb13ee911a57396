"""The arrays of a shard: a mapped file, or at a URL a copy of it that is made and mapped when it is needed."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vidtok_plugin.common.remote import Entry, entry
from vidtok_plugin.common.remote_cache import local_file
from vidtok_plugin.common.url_path import UrlPath

DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "U8": np.uint8}
MAX_MAPPED = 64  # shards of URLs that a process keeps mapped, which the cache cannot free meanwhile


class ArrayKind(NamedTuple):
    """Type and shape of an array that has not been read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def map_arrays(file: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, np.ndarray]:
    """The arrays of a mapped file, whose bytes begin at `start`."""
    # torch maps without keeping the file open: a store may have more shards than a process may open files.
    spans = _spans(header, size - start)
    try:
        whole = torch.from_file(os.fspath(file), shared=False, size=size, dtype=torch.uint8).numpy()[start:]
    except RuntimeError:
        file.stat()  # raises FileNotFoundError if it was removed since it was opened above
        raise
    return {
        name: whole[begin:end].view(DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
        for name, (begin, end) in spans.items()
    }


class CopiedArrays(Mapping[str, np.ndarray]):
    """The arrays of a shard at a URL. A copy is made in the bounded cache when one is needed, and mapped; a process
    keeps the last ones mapped."""

    _mapped: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()  # of all stores

    def __init__(self, file: UrlPath, header: Mapping[str, Any], start: int, found: Entry) -> None:
        self.file, self.header, self.start, self.found = file, header, start, found
        _spans(header, found.size - start)
        self.kinds = {
            name: ArrayKind(np.dtype(DTYPES[header[name]["dtype"]]), tuple(header[name]["shape"])) for name in header
        }
        self._key = f"{file} {found.version}"

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.kinds:
            raise KeyError(name)
        arrays = self._mapped.get(self._key)
        if arrays is None:
            if not self.file.exists() or entry(str(self.file)) != self.found:
                raise FileNotFoundError(
                    f"TokenStore: {self.file} has been replaced or removed since the store was opened; open it again."
                )
            arrays = map_arrays(local_file(str(self.file)), self.header, self.start, self.found.size)
            while len(self._mapped) >= MAX_MAPPED:
                self._mapped.popitem(last=False)
            self._mapped[self._key] = arrays
        self._mapped.move_to_end(self._key)
        return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)


def _spans(header: Mapping[str, Any], length: int) -> dict[str, tuple[int, int]]:
    """First byte and end of each array; together they must be all the bytes after the header."""
    spans = {name: (int(tensor["data_offsets"][0]), int(tensor["data_offsets"][1])) for name, tensor in header.items()}
    position = 0
    for begin, end in sorted(spans.values()):
        if begin != position or end < begin:
            raise ValueError("its arrays overlap or leave gaps")
        position = end
    if position != length:
        raise ValueError("its length differs from its header's")
    return spans
