"""Shards, the files of a token store: many episodes' steps, one after another, that are read without being copied.

    shard_00003/shard.safetensors   what is listed below, and in its header where each episode is and came from
    shard_00003_r1/                 took the place of shard_00003 when an episode's file had changed

A shard appears whole or not at all and never changes; of two revisions of one, the later holds.

    codes        (N, H, W) int32: FSQ's codebook indices, or
    patches      (N, H, W, d) float32: a KL model's normalised patches
    actions      (N, f[, a]) int64 or float32: those that led to each step's frames, if there are any
    num_actions  (N,) uint8: how many of the f actions there are

Shapes: N steps of a shard, H W rows and columns, d values of a patch, f frames a step, a components of a continuous
action.
"""

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
_EPISODES = "episodes"  # in the header: each one's name, digest, first frame, frames and steps
_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "U8": np.uint8}
_NAME = re.compile(r"shard_(?P<number>\d+)(_r(?P<revision>\d+))?")


@dataclass(frozen=True, kw_only=True)
class StoredEpisode:
    """The place and the origin of an unbroken stretch of tokens, whose first step is a single frame."""

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
    """An open shard; its arrays are the mapped file, which stays readable when its name is removed."""

    path: Path
    data: Mapping[str, np.ndarray]  # N steps of each
    entries: Sequence[tuple[str, str, int, int, int]]  # of each episode: name, digest, first frame, frames, steps

    @property
    def steps(self) -> list[int]:
        """Of each episode."""
        return [entry[-1] for entry in self.entries]

    def stored_episodes(self) -> list[StoredEpisode]:
        """Its episodes, in order."""
        episodes, start = [], 0
        for name, digest, first, frames, steps in self.entries:
            episodes.append(
                StoredEpisode(name=name, digest=digest, first_frame=first, frames=frames, steps=steps, start=start)
            )
            start += steps
        return episodes

    def steps_of(self, episode: StoredEpisode) -> dict[str, Tensor]:
        """A copy of what is stored of one of its episodes."""
        own = slice(episode.start, episode.start + episode.steps)
        return {name: torch.from_numpy(values[own].copy()) for name, values in self.data.items()}


def shard_paths(split_folder: Path) -> dict[int, Path]:
    """The shards of a split that are there, by number and in order; of each its last revision."""
    found: dict[int, tuple[int, Path]] = {}
    for path in split_folder.iterdir() if split_folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            number = int(match["number"])
            found[number] = max(found.get(number, (-1, path)), (_revision(path), path))
    return {number: found[number][1] for number in sorted(found)}


def superseded_shards(split_folder: Path) -> list[Path]:
    """Shards in whose place later revisions are."""
    holding = set(shard_paths(split_folder).values())
    return [path for path in split_folder.glob("shard_*") if _NAME.fullmatch(path.name) and path not in holding]


def shard_path(split_folder: Path, number: int) -> Path:
    """Where the first revision of a shard goes."""
    return split_folder / f"shard_{number:05d}"


def next_revision(shard: Path) -> Path:
    """Where the revision after `shard` goes."""
    return shard.with_name(f"{shard.name.partition('_r')[0]}_r{_revision(shard) + 1}")


def write_shard_file(folder: Path, episodes: Sequence[StoredEpisode], data: Sequence[Mapping[str, Tensor]]) -> None:
    """Make the folder of a shard that holds these episodes, each with its steps."""
    folder.mkdir()
    tensors = {name: torch.cat([part[name] for part in data]) for name in data[0]}
    entries = [[e.name, e.digest, e.first_frame, e.frames, e.steps] for e in episodes]
    save_file(tensors, folder / SHARD_FILE, {_EPISODES: json.dumps(entries)})


def open_shard(path: Path) -> Shard:
    """Map a shard.

    Raises:
        FileNotFoundError: it is not there any more, since an update has written it anew.
        ValueError: it is damaged.
    """
    file = path / SHARD_FILE
    try:
        return _map(path, file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"TokenStore: {file} is not there any more: the store has been written anew since it was opened; open it "
            "again."
        ) from None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"TokenStore: {file} is damaged ({error}); remove {path} and tokenize its videos again."
        ) from None


def _map(path: Path, file: Path) -> Shard:
    # Not by the library's reader, which has the system read the whole file ahead: ten times as slow to open.
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = os.fstat(opened.fileno()).st_size
        if length > size:
            raise ValueError("its header is cut off")
        header = json.loads(opened.read(length))
    entries = json.loads(header.pop("__metadata__")[_EPISODES])
    if 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) != size:
        raise ValueError("its length is not what its header says")
    # Mapped by torch, which keeps no file open: a store may have more shards than a process may open files.
    try:
        whole = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()[8 + length :]
    except RuntimeError:
        file.stat()  # a FileNotFoundError, if it was removed since it was opened above
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
