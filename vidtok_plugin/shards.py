"""Shards, the files of a token store: many episodes' steps, one after another, that are read without being copied.

    shard_00003/shard.safetensors   what is listed below, and in its header the episodes' files
    shard_00003_r1/                 took the place of shard_00003 when an episode's file had changed

A shard appears whole or not at all and never changes; of two revisions of one, the later holds.

    codes        (N, H, W) int32: FSQ's codebook indices, or
    patches      (N, H, W, d) float32: a KL model's normalised patches
    actions      (N, f[, a]) int64 or float32: those that led to each step's frames, if there are any
    num_actions  (N,) uint8: how many of the f actions there are
    episodes     (E, 3) int64: each episode's first frame in its file, its frames and its steps

Shapes: N steps of a shard, E episodes, H W rows and columns, d values of a patch, f frames a step, a components of
a continuous action.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_FILE = "shard.safetensors"
EPISODES = "episodes"
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
    episodes: np.ndarray  # (E, 3) int64: first frame, frames, steps
    files: str  # JSON: name and digest of each episode's file; read when asked for, since that takes longest

    def stored_episodes(self) -> list[StoredEpisode]:
        """Its episodes, in order."""
        starts = np.cumsum(self.episodes[:, 2]) - self.episodes[:, 2]
        rows = zip(json.loads(self.files), self.episodes.tolist(), starts.tolist(), strict=True)
        return [
            StoredEpisode(name=name, digest=digest, first_frame=first, frames=frames, steps=steps, start=start)
            for (name, digest), (first, frames, steps), start in rows
        ]

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
    numbers = [[episode.first_frame, episode.frames, episode.steps] for episode in episodes]
    tensors[EPISODES] = torch.tensor(numbers, dtype=torch.int64)
    files = json.dumps([[episode.name, episode.digest] for episode in episodes])
    save_file(tensors, folder / SHARD_FILE, {"files": files})


def open_shard(path: Path) -> Shard:
    """Map a shard.

    Raises:
        FileNotFoundError: it is not there any more, since an update has written it anew.
        ValueError: it is damaged.
    """
    file = path / SHARD_FILE
    try:
        with safe_open(file, "pt") as tensors:
            files = tensors.metadata()["files"]
            data = {name: tensors.get_tensor(name).numpy() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(
            f"TokenStore: {file} is not there any more: the store has been written anew since it was opened; open it "
            "again."
        ) from None
    except SafetensorError as error:
        raise ValueError(
            f"TokenStore: {file} is damaged ({error}); remove {path} and tokenize its videos again."
        ) from None
    return Shard(path=path, episodes=data.pop(EPISODES), files=files, data=data)


def _revision(shard: Path) -> int:
    match = _NAME.fullmatch(shard.name)
    assert match is not None
    return int(match["revision"] or 0)
