"""Checks of a shard: its header against the store's metadata, and its contents against checksums and codebook."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.store.shard_arrays import ArrayKind
from vidtok_plugin.store.shards import UNKNOWN_END, Shard, checksum, damaged, open_shard
from vidtok_plugin.video.action_space import components, wrong_value


def check_shard(shard: Shard, metadata: StoreMetadata) -> None:
    """Check the names, types and shapes of its arrays, and its episodes, without reading the arrays.

    Raises:
        ValueError: the shard does not fit the metadata.
    """
    if problem := arrays_problem(shard.kinds, shard.entries, metadata):
        raise damaged(shard.path, problem)


def check_contents(shard: Shard, metadata: StoreMetadata) -> None:
    """Read the whole shard and check its checksums, and codes, patches and actions against the metadata.

    Raises:
        ValueError: the shard is damaged.
    """
    for name in shard.data:
        check_bytes(shard, name)
    if problem := values_problem(shard.data, metadata):
        raise damaged(shard.path, problem)


def check_bytes(shard: Shard, name: str) -> None:
    """Check one of its arrays against its checksum; a ValueError if they differ."""
    if shard.identity is not None and checksum(shard.data[name]) != shard.identity.checksums[name]:
        raise damaged(shard.path, f"the bytes of its {name} differ from their checksum")


def intact_shard(path: Path, metadata: StoreMetadata) -> Shard:
    """The shard at a path, opened and checked whole.

    Raises:
        FileNotFoundError: it no longer exists.
        ValueError: it is damaged.
    """
    shard = open_shard(path)
    check_shard(shard, metadata)
    check_contents(shard, metadata)
    return shard


def arrays_problem(
    data: Mapping[str, np.ndarray | ArrayKind], entries: Sequence[Sequence[Any]], metadata: StoreMetadata
) -> str | None:
    """What is wrong with the names, types and shapes of a shard's arrays, or with its episodes; None if nothing is."""
    if not isinstance(entries, list) or not entries or not {*map(type, entries)} <= {list, tuple}:
        return "it has no list of episodes"
    if {*map(len, entries)} != {5}:
        return "an episode must have a name, a digest, a first frame, frames and steps"
    columns = list(zip(*entries, strict=True))
    if [{*map(type, column)} for column in columns] != [{str}, {str}, {int}, {int}, {int}]:
        return "an episode's name and digest must be strings, its first frame, frames and steps integers"
    _, _, first, frames, steps = columns
    if min(first) < 0 or min(frames) < 0 or min(steps) < 1:
        return "an episode's first frame and frames must be at least 0 and its steps at least 1"
    factor = metadata.temporal_factor
    if any(count != 1 - (1 - number) // factor for number, count in zip(frames, steps, strict=True)):
        return f"an episode's steps must be 1 + (frames - 1) / {factor}, rounded up"
    needed, optional = _shapes(metadata, sum(steps)), _optional_shapes(data, metadata, sum(steps))
    if not needed.keys() <= data.keys() <= needed.keys() | optional.keys():
        return f"its arrays must be {', '.join(needed)} and perhaps {', '.join(optional)}, got {', '.join(data)}"
    for name in data:
        dtype, shape = (needed | optional)[name]
        if data[name].dtype != dtype or data[name].shape != shape:
            return f"its {name} must be {dtype} of {shape}, got {data[name].dtype} of {data[name].shape}"
    return None


def values_problem(data: Mapping[str, np.ndarray], metadata: StoreMetadata) -> str | None:
    """Which values in a shard's arrays are impossible; None if all are possible."""
    if metadata.codebook_size is not None:
        low, high = int(data["codes"].min()), int(data["codes"].max())
        if low < 0 or high >= metadata.codebook_size:
            return f"its codes must be in 0..{metadata.codebook_size - 1}, got {low if low < 0 else high}"
    elif not np.isfinite(data["patches"]).all():
        return "its patches must be finite, got NaN or infinity"
    if "rewards" in data and np.isinf(data["rewards"]).any():
        return "its rewards must be finite, or NaN where there are none, got infinity"
    if "state" in data and np.isinf(data["state"]).any():
        return "its state must be finite, or NaN where there is none, got infinity"
    if "terminated" in data and int(data["terminated"].max()) > UNKNOWN_END:
        return f"its terminated must be 0, 1, or {UNKNOWN_END} for unknown, got {int(data['terminated'].max())}"
    if not metadata.action_space:
        return None
    if int(data["num_actions"].max()) > metadata.temporal_factor:
        return f"its num_actions must be at most {metadata.temporal_factor}, got {int(data['num_actions'].max())}"
    if metadata.action_space["kind"] == "continuous":
        return None if np.isfinite(data["actions"]).all() else "its actions must be finite, got NaN or infinity"
    if metadata.action_space["kind"] == "mixed":
        wrong = wrong_value(data["actions"], components(metadata.action_space["space"]))
        if wrong is None:
            return None
        index, component = wrong
        return f"{component.name} of its actions must be {component.rule}, got {data['actions'][index]}"
    low, high, size = int(data["actions"].min()), int(data["actions"].max()), metadata.action_space["size"]
    if low < 0 or high >= size:
        return f"its actions must be in 0..{size - 1}, got {low if low < 0 else high}"
    return None


def _shapes(metadata: StoreMetadata, steps: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Type and shape of each array of a shard with this number of steps."""
    grid = (steps, metadata.height, metadata.width)
    discrete = metadata.kind == "discrete"
    tokens = (np.dtype(np.int32), grid) if discrete else (np.dtype(np.float32), (*grid, metadata.patch_dim or 0))
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {metadata.token_key: tokens}
    if space := metadata.action_space:
        components = () if space["kind"] == "discrete" else (space["size"],)
        dtype = np.dtype(np.int64 if space["kind"] == "discrete" else np.float32)
        expected["actions"] = (dtype, (steps, metadata.temporal_factor, *components))
        expected["num_actions"] = (np.dtype(np.uint8), (steps,))
    return expected


def _optional_shapes(
    data: Mapping[str, np.ndarray | ArrayKind], metadata: StoreMetadata, steps: int
) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Type and shape of each array that shards may lack; a state may have any number of components."""
    frames = (steps, metadata.temporal_factor)
    components = max(1, data["state"].shape[-1]) if "state" in data and data["state"].shape else 1
    return {
        "rewards": (np.dtype(np.float32), frames),
        "terminated": (np.dtype(np.uint8), (steps,)),
        "state": (np.dtype(np.float32), (*frames, components)),
    }
