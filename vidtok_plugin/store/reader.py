"""TokenStore: reads a store's episodes in windows of steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.remote import listed
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.store.metadata import METADATA_FILE, StoreMetadata, read_metadata, written_by_another
from vidtok_plugin.store.records import REMEDY, record_path, recorded_splits
from vidtok_plugin.store.shard_checks import check_bytes, check_contents, check_shard
from vidtok_plugin.store.shards import (
    OPTIONAL,
    OUTCOMES,
    Shard,
    StoredEpisode,
    damaged,
    lost_shards,
    open_shard,
    shard_paths,
    split_folders,
)
from vidtok_plugin.store.statistics import ColumnStatistics, column_statistics


class TokenStore:
    """A store, or one split of it, as it was when it was opened.

    `refreshed()` also shows shards that were added since. After an update, an open store keeps the previous tokens.

    Opening compares the metadata and every shard's header. A shard's checksums, and its codes, are checked when its
    first window is read. `check_store` (`vidtok-plugin check`) reads everything.

    metadata: of tokens to read before an unfinished update makes them current.

    Raises:
        FileNotFoundError: there is no store, no episode of the split, or a shard has been lost.
        ValueError: a store of another format, damaged metadata, or a damaged shard.

    Example:
        store = TokenStore("runs/demo/tokens", split="train")
        store.check(adapter)
        store.window(episode=0, start=10, length=8)["codes"]  # (8, H, W) int64
    """

    def __init__(self, folder: str | Path, split: str | None = None, *, metadata: StoreMetadata | None = None) -> None:
        self.folder = as_path(folder)
        self.split = split
        self.metadata, self._splits, self._shards = _open(self.folder, split, metadata)
        self._paths = [shard.path for shard in self._shards]
        self._unread = np.ones(len(self._shards), dtype=bool)  # shards whose contents have not been checked
        # Per episode, (episodes,) int64: its number of steps, its shard, and its first step in that shard.
        counts = [len(shard.entries) for shard in self._shards]
        self.steps: np.ndarray = np.array([steps for shard in self._shards for steps in shard.steps], dtype=np.int64)
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        ends = np.cumsum(self.steps)
        first_of_shards = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
        self._first_step = ends - self.steps - first_of_shards[self._shard_of]

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped shards, which cannot be pickled; `__setstate__` opens the same ones."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_shards", "episodes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = [open_shard(path) for path in self._paths]
        for shard in self._shards:
            check_shard(shard, self.metadata)
        self._unread = np.ones(len(self._shards), dtype=bool)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.steps)

    @cached_property
    def episodes(self) -> list[StoredEpisode]:
        """Origin and location of each episode."""
        return [
            replace(episode, split=split, shard=number)
            for number, (split, shard) in enumerate(zip(self._splits, self._shards, strict=True))
            for episode in shard.stored_episodes()
        ]

    @cached_property
    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape, without the steps, and type of each array that a shard has."""
        arrays = {name: x for shard in self._shards for name, x in shard.kinds.items()}
        return {name: (x.shape[1:], x.dtype) for name, x in arrays.items()}

    @property
    def outcomes(self) -> set[str]:
        """Which of `rewards` and `terminated` some of its episodes have."""
        return set(OUTCOMES) & set(self._arrays)

    @property
    def largest_reward(self) -> float | None:
        """The largest reward of a frame, positive or negative, as a positive number; None if none is known."""
        known = [
            rewards[~np.isnan(rewards)] for shard in self._shards if (rewards := shard.data.get("rewards")) is not None
        ]
        return max((float(np.abs(rewards).max()) for rewards in known if len(rewards)), default=None)

    def action_statistics(self) -> ColumnStatistics:
        """Of each number of the actions of all its frames.

        Raises:
            ValueError: the actions are single choices or there are none, or a shard is damaged.
        """
        space = self.metadata.action_space
        if space.get("kind", "discrete") == "discrete":
            raise ValueError(f"TokenStore: {self.folder} must have actions that are vectors, got {dict(space)}.")
        return column_statistics(map(self._known_actions, self._shards), space["size"])

    def _known_actions(self, shard: Shard) -> np.ndarray:
        """The actions (k, a) of a shard's frames; the first of an episode has none."""
        check_bytes(shard, "actions")  # not the tokens, which would be read in vain
        known = np.arange(self.metadata.temporal_factor) < shard.data["num_actions"][:, None]
        actions: np.ndarray = shard.data["actions"][known]
        if not np.isfinite(actions).all():
            raise damaged(shard.path, "its actions must be finite, got NaN or infinity")
        return actions

    @property
    def state_size(self) -> int | None:
        """The number of components of a frame's state; None if no episode has a state."""
        return self._arrays["state"][0][-1] if "state" in self._arrays else None

    def state_statistics(self) -> ColumnStatistics:
        """Of each component of the states of all its frames.

        Raises:
            ValueError: no episode has a state, or a shard is damaged.
        """
        if self.state_size is None:
            raise ValueError(f"TokenStore: {self.folder} must have states for their statistics, got none.")
        return column_statistics(map(self._known_states, self._shards), self.state_size)

    def _known_states(self, shard: Shard) -> np.ndarray:
        """The states (k, s) of a shard's frames."""
        if "state" not in shard.data:
            return np.zeros((0, self.state_size or 0))
        states = shard.data["state"].reshape(-1, shard.data["state"].shape[-1])
        known: np.ndarray = states[~np.isnan(states).any(axis=1)]
        if not np.isfinite(known).all():
            raise damaged(shard.path, "its state must be finite, or NaN where there is none, got infinity")
        return known

    @property
    def num_steps(self) -> int:
        return int(self.steps.sum())

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.metadata.height * self.metadata.width

    def refreshed(self) -> "TokenStore":
        """The store as it is now; new shards may change the numbers of the episodes."""
        return TokenStore(self.folder, self.split)

    def check(self, adapter: TokenizerAdapter) -> None:
        """Raise a ValueError unless this adapter produces the store's tokens; its decoder may differ."""
        if adapter.token_hash != self.metadata.token_hash:
            raise ValueError(
                f"{written_by_another(self.folder, self.metadata.token_hash, adapter.token_hash)}; load the adapter "
                "that wrote it, or tokenize the videos again with `vidtok-plugin tokenize --update`."
            )

    def window(self, episode: int, start: int, length: int) -> TensorDict:
        """`length` steps of one episode from `start` on, as in `windows` but without the first axis.

        Raises:
            ValueError: there is no such episode, or the window exceeds it.
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
        """`length` steps from each start, of one episode each; where an episode ends, zeros follow.

        codes (b, T, H, W) int64, or patches (b, T, H, W, d) float32 of a KL model; valid (b, T) bool, False after the
        end of the episode; episode and start (b,) int64; and, if the videos have actions, actions (b, T, f[, a]) and
        actions_known (b, T, f) bool. If some episodes have outcomes, also rewards (b, T, f) float32, NaN where unknown,
        and terminated (b, T) uint8: 1 where the episode ended, 0 where it went on, 2 where that is unknown. If some
        have states, also state (b, T, f, s) float32, NaN where unknown.

        Raises:
            ValueError: there is no such episode, a window begins outside its episode, or its shard is damaged.
        """
        episode, start = np.asarray(episodes, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        self._check_windows(episode, start)
        shards = self._shard_of[episode]
        if self._unread[shards].any():
            self._check_contents(shards)
        b, key = len(episode), self.metadata.token_key
        first = self._first_step[episode] + start  # in the shard
        counts = np.minimum(self.steps[episode] - start, length)
        arrays = {
            name: np.full((b, length, *shape), OPTIONAL.get(name, 0), dtype)
            for name, (shape, dtype) in self._arrays.items()
        }
        # Copied window by window: each is one contiguous piece of a file, and their files differ.
        rows = zip(shards.tolist(), first.tolist(), counts.tolist(), strict=True)
        for row, (shard, begin, count) in enumerate(rows):
            stored = self._shards[shard].data
            for name, values in stored.items():
                arrays[name][row, :count] = values[begin : begin + count]
        tokens = torch.from_numpy(arrays[key])
        data = {
            key: tokens.long() if key == "codes" else tokens,
            "valid": torch.from_numpy(np.arange(length) < counts[:, None]),
            "episode": torch.from_numpy(episode.copy()),
            "start": torch.from_numpy(start.copy()),
        }
        if "actions" in arrays:
            data["actions"] = torch.from_numpy(arrays["actions"])
            known = np.arange(self.metadata.temporal_factor) < arrays["num_actions"][..., None]
            data["actions_known"] = torch.from_numpy(known)
        data |= {name: torch.from_numpy(arrays[name]) for name in OPTIONAL if name in arrays}
        return TensorDict(data, batch_size=[b])

    def _check_contents(self, shards: np.ndarray) -> None:
        """Check those of these shards from which nothing has been read yet."""
        for number in np.unique(shards[self._unread[shards]]).tolist():
            check_contents(self._shards[number], self.metadata)
            self._unread[number] = False

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


def _open(
    folder: Path, split: str | None, pending: StoreMetadata | None
) -> tuple[StoreMetadata, list[str], list[Shard]]:
    """The metadata, the split of each shard, and the open shards."""
    if isinstance(folder, UrlPath):
        with listed(str(folder)):
            return _open_shards(folder, split, pending)
    return _open_shards(folder, split, pending)


def _open_shards(
    folder: Path, split: str | None, pending: StoreMetadata | None
) -> tuple[StoreMetadata, list[str], list[Shard]]:
    while True:
        metadata = read_metadata(folder) if pending is None else pending
        paths: list[tuple[str, Path]] | None = None
        try:
            paths = _shards_with_split(folder, metadata, split)
            shards = [open_shard(path) for _, path in paths]
        except FileNotFoundError:
            # An update may have removed the shard. Then the metadata or the paths have changed, so try again.
            now = read_metadata(folder) if pending is None else pending
            if now == metadata and (paths is None or _shards_with_split(folder, now, split) == paths):
                raise
            continue
        for shard in shards:
            check_shard(shard, metadata)
        _check_state_sizes(shards)
        return metadata, [name for name, _ in paths], shards


def _check_state_sizes(shards: Sequence[Shard]) -> None:
    sizes = {shard.kinds["state"].shape[-1]: shard for shard in shards if "state" in shard.kinds}
    if len(sizes) > 1:
        (size, shard), (other, another) = list(sizes.items())[:2]
        raise ValueError(
            f"TokenStore: all states must have equally many components, got {size} in {shard.path} and {other} in "
            f"{another.path}; tokenize the episodes of the latter into another store."
        )


def _shards_with_split(folder: Path, metadata: StoreMetadata, split: str | None) -> list[tuple[str, Path]]:
    """Split and path of each shard of these tokens, of all splits or one."""
    tokens = folder / metadata.tokens_folder
    recorded = recorded_splits(tokens)  # first: a shard is written before its record
    found = {path.name: path for path in split_folders(tokens)}
    for name in sorted(recorded if split is None else recorded & {split}):
        if lost := lost_shards(tokens / name):
            raise FileNotFoundError(
                f"TokenStore: {lost[0]} was written and is missing; restore it, {REMEDY}, or remove "
                f"{record_path(lost[0])} if its episodes are to be left out."
            )
    if not found and (others := sorted(folder.glob("tokens_*"))) and not tokens.exists():
        raise FileNotFoundError(
            f"TokenStore: {folder / METADATA_FILE} must have the facts of its tokens, which are in {others[0].name}, "
            f"got those of {tokens.name}: it was changed, or its tokens were removed; restore it, or tokenize the "
            "videos again with `vidtok-plugin tokenize`."
        )
    if not found or (split is not None and split not in found):
        wanted = "" if split is None else f" of the split {split}"
        existing = f"it has the splits {', '.join(found)}" if found else "no shard has been written yet"
        raise FileNotFoundError(f"TokenStore: {folder} has no episodes{wanted}; {existing}.")
    names = found if split is None else [split]
    return [(name, path) for name in names for path in shard_paths(found[name]).values()]
