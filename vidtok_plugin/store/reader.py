"""The token store: episodes as tokens and actions in memory-mapped shards, read in windows.

    STORE/store.json                  what the tokens are: the adapter's hashes, grid, codebook, rate, actions
    STORE/adapter_1f.../              the adapter that wrote them, to decode what a model makes of them
    STORE/tokens_0a.../train/         the shards of a split (`vidtok_plugin.store.shards`)
    STORE/tokens_0a.../train/plan_00000/   which episodes go into which shards, for those who write them
    STORE/statistics_5c.../           a KL model's latent statistics that all who write the store agree on

A store may be read while several processes write to it. Folders are named by what decides their contents, and
store.json alone tells which of them hold: so tokens that are written anew take the place of the old ones at once.

Shapes: T steps of a window, H W rows and columns, d values of a patch, f frames a step, a components of a continuous
action.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tensordict import TensorDict

from vidtok_plugin.store.shards import Shard, StoredEpisode, open_shard, shard_paths

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

FORMAT = 2
METADATA_FILE = "store.json"
_OF_THE_ADAPTER = ("adapter_hash", "tokenizer", "preset")  # may change while the tokens stay what they are


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """What all tokens of a store have in common."""

    adapter_hash: str
    token_hash: str  # of what decides the tokens: the decoder may be trained on
    tokenizer: Mapping[str, Any]  # its architecture, for the reader's information
    preset: str | None = None  # the name of that architecture, if it has one
    kind: Literal["discrete", "continuous"] = "discrete"
    codebook_size: int | None = None  # of discrete tokens
    fsq_levels: tuple[int, ...] | None = None
    patch_dim: int | None = None  # of continuous ones
    height: int  # of the grid
    width: int
    temporal_factor: int
    fps: float
    action_space: Mapping[str, Any] = field(default_factory=dict)  # kind, size and meanings; empty without actions
    clip_frames: int | None = None  # frames that were encoded as a stream of their own; None for whole videos
    format: int = FORMAT

    def __post_init__(self) -> None:
        sizes = {"discrete": self.codebook_size, "continuous": self.patch_dim}
        if self.kind not in sizes or [kind for kind, size in sizes.items() if size is not None] != [self.kind]:
            raise ValueError(
                "StoreMetadata: kind must be discrete with a codebook_size or continuous with a patch_dim, got "
                f"{self.kind!r} with codebook_size={self.codebook_size} and patch_dim={self.patch_dim}."
            )

    @property
    def token_key(self) -> Literal["codes", "patches"]:
        """What the tokens are called in shards and windows."""
        return "codes" if self.kind == "discrete" else "patches"

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Of one step: (H, W) or (H, W, d)."""
        return (self.height, self.width, *([] if self.patch_dim is None else [self.patch_dim]))

    @property
    def tokens_folder(self) -> str:
        """The name of the folder of such tokens, in a store."""
        facts = {name: value for name, value in asdict(self).items() if name not in _OF_THE_ADAPTER}
        return f"tokens_{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"

    @property
    def adapter_folder(self) -> str:
        """The name of the adapter's folder, in a store."""
        return f"adapter_{self.adapter_hash[:16]}"

    def check_same(self, other: "StoreMetadata", whose: str, remedy: str = "write another store") -> None:
        """A ValueError that names what of the tokens differs in `other`, and whose it is."""
        ours, theirs = asdict(self), asdict(other)
        for name, value in ours.items():
            if name not in _OF_THE_ADAPTER and value != theirs[name]:
                raise ValueError(
                    f"TokenStore: {name} must be the same throughout a store, {value}, got {theirs[name]} of "
                    f"{whose}; {remedy}."
                )


class TokenStore:
    """Reads a store, or one split of it; raises ValueError or FileNotFoundError where there is none.

    It shows what was there when it was opened: shards that have come since are seen by `refreshed()`, and tokens that
    an update has written anew since leave it with the old ones.

    metadata: of tokens to read that an unfinished update has not made the store's yet.

    Example:
        store = TokenStore("runs/demo/tokens", split="train")
        store.check(adapter)
        store.window(episode=0, start=10, length=8)["codes"]  # (8, H, W) int64
    """

    def __init__(self, folder: str | Path, split: str | None = None, *, metadata: StoreMetadata | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self.metadata, self._splits, self._shards = _open(self.folder, split, metadata)
        self._paths = [shard.path for shard in self._shards]
        counts = [len(shard.entries) for shard in self._shards]
        # Of each episode, (episodes,) int64.
        self.steps: np.ndarray = np.array([steps for shard in self._shards for steps in shard.steps], dtype=np.int64)
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        ends = np.cumsum(self.steps)
        first_of_shards = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
        self._starts = ends - self.steps - first_of_shards[self._shard_of]  # of each episode in its shard

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped shards, which no process can hand to another; it opens the same ones."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_shards", "episodes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = [open_shard(path) for path in self._paths]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.steps)

    @cached_property
    def episodes(self) -> list[StoredEpisode]:
        """Where the episodes came from."""
        return [
            replace(episode, split=split, shard=number)
            for number, (split, shard) in enumerate(zip(self._splits, self._shards, strict=True))
            for episode in shard.stored_episodes()
        ]

    @property
    def num_steps(self) -> int:
        return int(self.steps.sum())

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.metadata.height * self.metadata.width

    def refreshed(self) -> "TokenStore":
        """The store as it is now; shards that have come may have changed the episodes' numbers."""
        return TokenStore(self.folder, self.split)

    def check(self, adapter: "TokenizerAdapter") -> None:
        """A ValueError unless this adapter gives the store's tokens; its decoder may have been trained on."""
        if adapter.token_hash != self.metadata.token_hash:
            raise ValueError(
                f"{written_by_another(self.folder, self.metadata.token_hash, adapter.token_hash)}; load the adapter "
                "that wrote it, or redo it by `vidtok-plugin tokenize --update`."
            )

    def window(self, episode: int, start: int, length: int) -> TensorDict:
        """`length` steps of one episode from `start` on: see `windows`, without the first axis.

        Raises:
            ValueError: there is no such episode, or the window leaves it.
        """
        self._check_windows(np.array([episode]), np.array([start]))
        steps = int(self.steps[episode])
        if length < 1 or start + length > steps:
            raise ValueError(
                f"TokenStore: a window must lie within its episode's steps 0..{steps - 1}, got {length} "
                f"steps from {start} of episode {episode}."
            )
        return self.windows([episode], [start], length)[0]

    def windows(
        self, episodes: Sequence[int] | np.ndarray, starts: Sequence[int] | np.ndarray, length: int
    ) -> TensorDict:
        """Windows of `length` steps of the given episodes, as many as there are; where an episode ends, zeros
        follow.

        codes (b, T, H, W) int64, or of a KL model patches (b, T, H, W, d) float32; valid (b, T) bool, False after the
        episode's end; episode and start (b,) int64; and, if the videos had actions, actions (b, T, f[, a]) and
        actions_known (b, T, f) bool.

        Raises:
            ValueError: there is no such episode, or a window doesn't begin within it.
        """
        of, first = np.asarray(episodes, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        self._check_windows(of, first)
        b, key = len(of), self.metadata.token_key
        begins = self._starts[of] + first
        counts = np.minimum(self.steps[of] - first, length)
        arrays = {name: np.zeros((b, length, *x.shape[1:]), x.dtype) for name, x in self._shards[0].data.items()}
        # Slices are copied window by window: windows are spread over many shards, and each is one piece of its file.
        rows = zip(self._shard_of[of].tolist(), begins.tolist(), counts.tolist(), strict=True)
        for row, (shard, begin, count) in enumerate(rows):
            stored = self._shards[shard].data
            for name, array in arrays.items():
                array[row, :count] = stored[name][begin : begin + count]
        tokens = torch.from_numpy(arrays[key])
        data = {
            key: tokens.long() if key == "codes" else tokens,
            "valid": torch.from_numpy(np.arange(length) < counts[:, None]),
            "episode": torch.from_numpy(of.copy()),
            "start": torch.from_numpy(first.copy()),
        }
        if "actions" in arrays:
            data["actions"] = torch.from_numpy(arrays["actions"])
            known = np.arange(self.metadata.temporal_factor) < arrays["num_actions"][..., None]
            data["actions_known"] = torch.from_numpy(known)
        return TensorDict(data, batch_size=[b])

    def _check_windows(self, episodes: np.ndarray, starts: np.ndarray) -> None:
        missing = episodes[(episodes < 0) | (episodes >= len(self))]
        if len(missing):
            raise ValueError(f"TokenStore: episode must be in 0..{len(self) - 1}, got {missing[0]}.")
        outside = np.flatnonzero((starts < 0) | (starts >= self.steps[episodes]))
        if len(outside):
            row = outside[0]
            raise ValueError(
                f"TokenStore: a window must begin within its episode's steps 0..{self.steps[episodes[row]] - 1}, got "
                f"{starts[row]} of episode {episodes[row]}."
            )


def read_metadata(folder: str | Path) -> StoreMetadata:
    """What the tokens of a store are."""
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        what = "is no token store: it has no store.json" if path.parent.is_dir() else "doesn't exist"
        raise FileNotFoundError(f"TokenStore: {folder} {what}; write one with `vidtok-plugin tokenize`.")
    values = json.loads(path.read_text())
    if values.get("format") != FORMAT:
        raise ValueError(
            f"TokenStore: the format of {folder} must be {FORMAT}, got {values.get('format')}: another version of this "
            "package wrote it; tokenize the videos into another folder, or remove this one before."
        )
    return metadata_of(values)


def adapter_folder(folder: str | Path) -> Path:
    """Where a store keeps the adapter that wrote it, for `TokenizerAdapter.from_pretrained`."""
    return Path(folder) / read_metadata(folder).adapter_folder


def metadata_of(values: Mapping[str, Any]) -> StoreMetadata:
    """The metadata that store.json's values tell."""
    levels = values["fsq_levels"]
    return StoreMetadata(**{**values, "fsq_levels": None if levels is None else tuple(levels)})


def split_folders(tokens: Path) -> list[Path]:
    """The splits that have shards."""
    return sorted(path for path in tokens.iterdir() if shard_paths(path)) if tokens.is_dir() else []


def written_by_another(folder: Path, theirs: str, ours: str) -> str:
    """The beginning of an error."""
    return f"TokenStore: {folder} was written by another tokenizer (token hash {theirs}, not {ours})"


def _open(
    folder: Path, split: str | None, pending: StoreMetadata | None
) -> tuple[StoreMetadata, list[str], list[Shard]]:
    """The metadata, and the shards with the split of each."""
    while True:
        metadata = read_metadata(folder) if pending is None else pending
        paths = _paths(folder, metadata, split)
        try:
            return metadata, [name for name, _ in paths], [open_shard(path) for _, path in paths]
        except FileNotFoundError:  # an update has removed it meanwhile, if what holds is other by now
            now = read_metadata(folder) if pending is None else pending
            if now == metadata and _paths(folder, now, split) == paths:
                raise


def _paths(folder: Path, metadata: StoreMetadata, split: str | None) -> list[tuple[str, Path]]:
    """The split and the path of each shard."""
    found = {path.name: path for path in split_folders(folder / metadata.tokens_folder)}
    if not found or (split is not None and split not in found):
        wanted = "" if split is None else f" of the split {split}"
        there = f"it has the splits {', '.join(found)}" if found else "its writing has only begun"
        raise FileNotFoundError(f"TokenStore: {folder} has no episodes{wanted}; {there}.")
    names = found if split is None else [split]
    return [(name, path) for name in names for path in shard_paths(found[name]).values()]
