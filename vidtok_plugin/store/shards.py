"""Shards: the files that hold the steps of many episodes, mapped into memory and read without copying."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

SHARD_FILE = "shard.safetensors"
_EPISODES = "episodes"  # header key: name, digest, first frame, frames and steps of each
_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "U8": np.uint8}
_NAME = re.compile(r"shard_(?P<number>\d+)(_r(?P<revision>\d+))?")


@dataclass(frozen=True, kw_only=True)
class StoredEpisode:
    """Origin and location of an episode: steps that were encoded as one stream, the first of them a single frame."""

    name: str  # the source file, relative to the folder that was tokenized
    first_frame: int = 0  # in that file
    steps: int
    frames: int
    digest: str  # SHA-256 of the source files
    split: str = ""
    shard: int = 0
    start: int = 0  # first step in the shard


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An open shard; its arrays are the mapped file, which stays readable after the file is removed."""

    path: Path
    data: Mapping[str, np.ndarray]  # N steps each
    entries: Sequence[tuple[str, str, int, int, int]]  # name, digest, first frame, frames, steps of each episode

    @property
    def steps(self) -> list[int]:
        """The number of steps of each episode."""
        return [entry[-1] for entry in self.entries]

    def stored_episodes(self) -> list[StoredEpisode]:
        """The episodes, in order."""
        episodes, start = [], 0
        for name, digest, first, frames, steps in self.entries:
            episodes.append(
                StoredEpisode(name=name, digest=digest, first_frame=first, frames=frames, steps=steps, start=start)
            )
            start += steps
        return episodes

    def steps_of(self, episode: StoredEpisode) -> dict[str, Tensor]:
        """A copy of the data of one of its episodes."""
        steps = slice(episode.start, episode.start + episode.steps)
        return {name: torch.from_numpy(values[steps].copy()) for name, values in self.data.items()}


def shard_paths(split_folder: Path) -> dict[int, Path]:
    """The latest revision of each shard of a split, by number and in order."""
    found: dict[int, tuple[int, Path]] = {}
    for path in split_folder.iterdir() if split_folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            number = int(match["number"])
            found[number] = max(found.get(number, (-1, path)), (_revision(path), path))
    return {number: found[number][1] for number in sorted(found)}


def superseded_shards(split_folder: Path) -> list[Path]:
    """Shards that a later revision has replaced."""
    latest = set(shard_paths(split_folder).values())
    return [path for path in split_folder.glob("shard_*") if _NAME.fullmatch(path.name) and path not in latest]


def split_folders(tokens_folder: Path) -> list[Path]:
    """The folders of splits that have shards."""
    return sorted(path for path in tokens_folder.iterdir() if shard_paths(path)) if tokens_folder.is_dir() else []


def shard_path(split_folder: Path, number: int) -> Path:
    """The path of a shard before any revision."""
    return split_folder / f"shard_{number:05d}"


def next_revision(shard: Path) -> Path:
    """The path of the revision that replaces `shard`."""
    return shard.with_name(f"{shard.name.partition('_r')[0]}_r{_revision(shard) + 1}")


def write_shard_file(folder: Path, episodes: Sequence[StoredEpisode], data: Sequence[Mapping[str, Tensor]]) -> None:
    """Create a shard's folder with these episodes and the data of each, all with the same names of arrays."""
    folder.mkdir()
    tensors = {name: torch.cat([episode[name] for episode in data]) for name in data[0]}
    entries = [[e.name, e.digest, e.first_frame, e.frames, e.steps] for e in episodes]
    save_file(tensors, folder / SHARD_FILE, {_EPISODES: json.dumps(entries)})


def open_shard(path: Path) -> Shard:
    """Map a shard into memory.

    Raises:
        FileNotFoundError: it no longer exists, because an update has replaced it.
        ValueError: it is damaged.
    """
    file = path / SHARD_FILE
    try:
        return _map(path, file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"TokenStore: {file} no longer exists: an update has replaced it since the store was opened; open the "
            "store again."
        ) from None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"TokenStore: {file} is damaged ({error}); remove {path} and tokenize its videos again."
        ) from None


def _map(path: Path, file: Path) -> Shard:
    # The reader of safetensors makes the system read the whole file ahead: opening takes ten times as long.
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = os.fstat(opened.fileno()).st_size
        if length > size:
            raise ValueError("its header is truncated")
        header = json.loads(opened.read(length))
    entries = json.loads(header.pop("__metadata__")[_EPISODES])
    if 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) != size:
        raise ValueError("its length differs from its header's")
    # torch maps without keeping the file open: a store may have more shards than a process may open files.
    try:
        whole = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()[8 + length :]
    except RuntimeError:
        file.stat()  # raises FileNotFoundError if it was removed since it was opened above
        raise
    data = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        data[name] = whole[begin:end].view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return Shard(path=path, data=data, entries=entries)


def _revision(shard: Path) -> int:
    match = _NAME.fullmatch(shard.name)
    assert match is not None
    return int(match["revision"] or 0)
