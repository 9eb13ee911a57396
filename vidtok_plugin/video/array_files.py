"""Arrays by name in a file: `.npz`, or HDF5 with h5py."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vidtok_plugin.common.damage import DAMAGE

HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npz", *HDF5_SUFFIXES)
FIX = "write the file again"
NO_H5PY = "reading HDF5 needs h5py, which is not installed; install it with: pip install 'vidtok-plugin[hdf5]'."


class ArrayFile(Protocol):
    """An open file of arrays."""

    names: list[str]  # of its arrays; those in groups have the groups' names before a slash

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array, without reading it."""

    def array(self, name: str) -> np.ndarray:
        """A whole array; text is an array of str."""

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of an array."""


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """A file of arrays, open as long as the context.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, or h5py is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Episode {path} doesn't exist; check the path.")
    hdf5 = path.suffix.lower() in HDF5_SUFFIXES
    if hdf5:
        _check_h5py()
    try:
        with _open_hdf5(path) if hdf5 else _open_npz(path) as file:
            yield file
    except (zipfile.BadZipFile, *DAMAGE) as error:
        if isinstance(error, ValueError) and str(error).startswith("Episode "):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"Episode {path}: it cannot be read ({reason}); {FIX}.") from None


class _Npz:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self.archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        return shape, dtype

    def array(self, name: str) -> np.ndarray:
        with self.archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        status = os.stat(self.path)
        return _npz_array(os.fspath(self.path), status.st_mtime_ns, status.st_size, name)[list(rows)]


@lru_cache(maxsize=2)
def _npz_array(path: str, mtime: int, size: int, name: str) -> np.ndarray:
    """An array that is read in parts, which a compressed file doesn't allow."""
    with zipfile.ZipFile(path) as archive:
        return _Npz(Path(path), archive).array(name)


@contextmanager
def _open_npz(path: Path) -> Iterator[ArrayFile]:
    with zipfile.ZipFile(path) as archive:
        yield _Npz(path, archive)


class _Hdf5:
    def __init__(self, file: Any) -> None:
        import h5py

        self.file = file
        found: list[str] = list(file.attrs)
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        self.names = found

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if name not in self.file:
            return self.array(name).shape, self.array(name).dtype
        return self.file[name].shape, self.file[name].dtype

    def array(self, name: str) -> np.ndarray:
        if name not in self.file:
            return np.asarray(self.file.attrs[name])
        value = self.file[name]
        return np.asarray(value.asstr()[()] if value.dtype.kind in "OS" else value[()])

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        wanted, places = np.unique(rows, return_inverse=True)  # h5py reads rows in increasing order only
        return self.file[name][wanted][places]


@contextmanager
def _open_hdf5(path: Path) -> Iterator[ArrayFile]:
    import h5py

    with h5py.File(path, "r") as file:
        yield _Hdf5(file)


def _check_h5py() -> None:
    try:
        import h5py  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise ValueError(NO_H5PY) from None
