"""The token store: episodes as tokens and actions in memory-mapped shards, read in windows.

    STORE/store.json                 what the tokens are: the adapter's hash, grid, codebook, rate, actions
    STORE/adapter/                   the adapter that wrote them, to decode what a model makes of them
    STORE/train/shard_00000/         a memory-mapped TensorDict of many episodes' steps, one after another
    STORE/train/shard_00000/episodes.json   where each episode begins, and the file that it came from
    STORE/train/plan_00000/          which episodes go into which shards, for those who write them

A shard appears whole or not at all and never changes, so that a store may be read while it is written to, by
several processes.

Shapes: N steps of a shard, T of a window, H W rows and columns, f frames a step, a components of a continuous
action.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.publishing import publish

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

FORMAT = 1
METADATA_FILE = "store.json"
ADAPTER_FOLDER = "adapter"
EPISODES_FILE = "episodes.json"
SHARD = "shard_{:05d}"


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """What all tokens of a store have in common."""

    adapter_hash: str
    tokenizer: Mapping[str, Any]  # its architecture, for the reader's information
    codebook_size: int
    fsq_levels: tuple[int, ...] | None
    height: int  # of the grid
    width: int
    temporal_factor: int
    fps: float
    action_space: Mapping[str, Any] = field(default_factory=dict)  # kind, size and meanings; empty without actions
    clip_frames: int | None = None  # frames that were encoded as a stream of their own; None for whole videos
    format: int = FORMAT

    def check_same(self, other: "StoreMetadata", whose: str) -> None:
        """A ValueError that names what differs in `other`, and whose it is."""
        ours, theirs = asdict(self), asdict(other)
        for name, value in ours.items():
            if value != theirs[name]:
                raise ValueError(
                    f"TokenStore: {name} must be the same throughout a store, {value}, got {theirs[name]} of "
                    f"{whose}; write another store."
                )


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


class TokenStore:
    """Reads a store, or one split of it; raises ValueError or FileNotFoundError where there is none.

    Example:
        store = TokenStore("runs/demo/tokens", split="train")
        store.check(adapter)
        store.window(episode=0, start=10, length=8)["codes"]  # (8, H, W) int64
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self.metadata = read_metadata(self.folder)
        splits = sorted(path.name for path in self.folder.iterdir() if any(path.glob("shard_*")))
        if not splits or (split is not None and split not in splits):
            wanted = "" if split is None else f" of the split {split}"
            there = f"it has the splits {', '.join(splits)}" if splits else "its writing has only begun"
            raise FileNotFoundError(f"TokenStore: {self.folder} has no episodes{wanted}; {there}.")
        self._shard_folders: list[Path] = []
        self.episodes: list[StoredEpisode] = []
        for name in splits if split is None else [split]:
            for path in shard_paths(self.folder / name).values():
                for episode in read_episodes(path):
                    self.episodes.append(replace(episode, split=name, shard=len(self._shard_folders)))
                self._shard_folders.append(path)
        self._shards = [_open_shard(path) for path in self._shard_folders]

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped shards, which no process can hand to another; it opens the same ones."""
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = [_open_shard(path) for path in self._shard_folders]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @cached_property
    def steps(self) -> np.ndarray:
        """Number of latent steps of each episode, (episodes,) int64."""
        return np.array([episode.steps for episode in self.episodes], dtype=np.int64)

    @property
    def num_steps(self) -> int:
        return int(self.steps.sum())

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.metadata.height * self.metadata.width

    def check(self, adapter: "TokenizerAdapter") -> None:
        """A ValueError unless this very adapter wrote the store."""
        if adapter.hash != self.metadata.adapter_hash:
            raise _written_by_another(str(self.folder), self.metadata.adapter_hash, adapter.hash)

    def window(self, episode: int, start: int, length: int) -> TensorDict:
        """`length` steps of one episode from `start` on: see `windows`, without the first axis.

        Raises:
            ValueError: there is no such episode, or the window leaves it.
        """
        if not 0 <= episode < len(self):
            raise ValueError(f"TokenStore: episode must be in 0..{len(self) - 1}, got {episode}.")
        steps = self.episodes[episode].steps
        if start < 0 or length < 1 or start + length > steps:
            raise ValueError(
                f"TokenStore: a window must lie within its episode's steps 0..{steps - 1}, got {length} "
                f"steps from {start} of episode {episode}."
            )
        return self.windows([episode], [start], length)[0]

    def windows(self, episodes: Sequence[int], starts: Sequence[int], length: int) -> TensorDict:
        """Windows of `length` steps of the given episodes, as many as there are; where an episode ends, zeros
        follow.

        codes (b, T, H, W) int64; valid (b, T) bool, False after the episode's end; episode and start (b,)
        int64; and, if the videos had actions, actions (b, T, f[, a]) and actions_known (b, T, f) bool.
        """
        b, meta = len(episodes), self.metadata
        first = self._shards[0]
        data = {
            "codes": torch.zeros(b, length, meta.height, meta.width, dtype=torch.int64),
            "valid": torch.zeros(b, length, dtype=torch.bool),
            "episode": torch.tensor([int(episode) for episode in episodes], dtype=torch.int64),
            "start": torch.tensor([int(start) for start in starts], dtype=torch.int64),
        }
        counts = torch.zeros(b, length, dtype=torch.int64)
        if "actions" in first:
            shape = (b, length, *first["actions"].shape[1:])
            data["actions"] = torch.zeros(shape, dtype=first["actions"].dtype)
        for row, (index, start) in enumerate(zip(episodes, starts, strict=True)):
            episode = self.episodes[index]
            begin = episode.start + int(start)
            end = min(begin + length, episode.start + episode.steps)
            shard, count = self._shards[episode.shard], end - begin
            data["codes"][row, :count] = shard["codes"][begin:end]
            data["valid"][row, :count] = True
            if "actions" in shard:
                data["actions"][row, :count] = shard["actions"][begin:end]
                counts[row, :count] = shard["num_actions"][begin:end]
        if "actions" in data:
            data["actions_known"] = torch.arange(meta.temporal_factor) < counts[..., None]
        return TensorDict(data, batch_size=[b])


class TokenStoreWriter:
    """Adds shards to a store, or begins one; a ValueError if what is there is of another kind.

    Several processes may write one store: of two that write the same shard, the second keeps the first one's.
    """

    def __init__(self, folder: str | Path, metadata: StoreMetadata) -> None:
        self.folder = Path(folder)
        text = json.dumps(asdict(metadata), indent=2) + "\n"
        self.metadata = _metadata_of(json.loads(text))  # as it will be read, with lists for tuples
        publish(self.folder / METADATA_FILE, lambda path: path.write_text(text))
        self._check()

    def write_shard(
        self,
        split: str,
        episodes: Sequence[StoredEpisode],
        data: Sequence[Mapping[str, Tensor]],
        number: int | None = None,
    ) -> Path:
        """Write episodes, each with its codes (N, H, W), and its actions (N, f[, a]) and their numbers (N,)
        if any, as the shard of that number, or as a new one after all that are there.

        Raises:
            ValueError: the shard is there with other episodes, or the store has become another tokenizer's.
        """
        self._check()
        parent = self.folder / split
        number = 1 + max(shard_paths(parent), default=-1) if number is None else number
        path = parent / SHARD.format(number)
        steps = TensorDict(
            {name: torch.cat([part[name] for part in data]) for name in data[0]},
            batch_size=[sum(episode.steps for episode in episodes)],
        )
        entries, start = [], 0
        for episode in episodes:
            entry = {name: getattr(episode, name) for name in ("name", "first_frame", "steps", "frames", "digest")}
            entries.append({**entry, "start": start})
            start += episode.steps

        def write(folder: Path) -> None:
            steps.memmap(folder)
            (folder / EPISODES_FILE).write_text(json.dumps(entries, indent=2) + "\n")

        if not publish(path, write) and read_episodes(path) != [StoredEpisode(**entry) for entry in entries]:
            raise ValueError(
                f"TokenStore: {path} must hold the episodes from {episodes[0].name} on, but another process has "
                "written others there; start the writing again."
            )
        return path

    def _check(self) -> None:
        there = read_metadata(self.folder)
        if there.adapter_hash != self.metadata.adapter_hash:
            raise _written_by_another(self.folder, there.adapter_hash, self.metadata.adapter_hash)
        there.check_same(self.metadata, f"the episodes to be added to {self.folder}")


def read_metadata(folder: str | Path) -> StoreMetadata:
    """What the tokens of a store are."""
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        what = "is no token store: it has no store.json" if path.parent.is_dir() else "doesn't exist"
        raise FileNotFoundError(f"TokenStore: {folder} {what}; write one with `vidtok-plugin tokenize`.")
    values = json.loads(path.read_text())
    if values.get("format") != FORMAT:
        raise ValueError(
            f"TokenStore: the format of {folder} must be {FORMAT}, got {values.get('format')}; tokenize the "
            "videos anew."
        )
    return _metadata_of(values)


def _metadata_of(values: Mapping[str, Any]) -> StoreMetadata:
    levels = values["fsq_levels"]
    return StoreMetadata(**{**values, "fsq_levels": None if levels is None else tuple(levels)})


def shard_paths(split_folder: Path) -> dict[int, Path]:
    """The shards of a split that are there, by number and in order."""
    paths = {int(path.name.removeprefix("shard_")): path for path in split_folder.glob("shard_*")}
    return dict(sorted(paths.items()))


def read_episodes(shard: Path) -> list[StoredEpisode]:
    """The episodes of a shard."""
    return [StoredEpisode(**entry) for entry in json.loads((shard / EPISODES_FILE).read_text())]


def _written_by_another(folder: str | Path, theirs: str, ours: str) -> ValueError:
    return ValueError(
        f"TokenStore: {folder} was written by another tokenizer (adapter hash {theirs}, not {ours}); "
        "tokenize the videos anew into another folder, or load the adapter that wrote it."
    )


def _open_shard(path: Path) -> dict[str, Tensor]:
    # As plain tensors on the mapped files: the memory-mapped class takes much longer to index.
    shard = {}
    for name, tensor in TensorDict.load_memmap(path).items():
        assert isinstance(tensor, Tensor)
        shard[name] = tensor.as_subclass(Tensor)
    return shard
