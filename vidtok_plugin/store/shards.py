"""Shards: the files that hold the steps of many episodes, mapped into memory and read without copying."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidtok_plugin.common.paths import is_regular_file
from vidtok_plugin.common.remote import entry, read_range
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.store.records import RECORDS, REMEDY, read_record, records_folder
from vidtok_plugin.store.shard_arrays import ArrayKind, CopiedArrays, map_arrays

SHARD_FILE = "shard.safetensors"
_FACTS = "shard"  # header key: the digest of a `ShardFacts` and its JSON
_EPISODES = "episodes"  # header key of shards before they had checksums: name, digest, first frame, frames and steps
MAX_HEADER = 256 << 20  # bytes
HEADER_BYTES = 64 << 10  # of a shard at a URL, read first: most headers
# What damaged bytes raise; RuntimeError includes RecursionError and errors of torch.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, NotADirectoryError
)  # fmt: skip
UNKNOWN_END = 2  # in `terminated`: 0 it went on, 1 it ended
# Arrays that a shard may lack, and their value where it is unknown.
OUTCOMES: Mapping[str, float] = {"rewards": float("nan"), "terminated": UNKNOWN_END}
OPTIONAL: Mapping[str, float] = {**OUTCOMES, "state": float("nan")}
SPLIT_RULE = "a plain name of letters, digits, and . _ - inside, such as train"
_SPLIT = re.compile(r"[^\W_][\w. -]{0,99}")
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
    task: str | None = None  # what was to be done, in words


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a shard's header says about it: its store, its place, and checksums of its arrays."""

    store: str  # the name of the folder of its tokens, a hash of the facts about them
    place: str  # SPLIT/NAME
    checksums: Mapping[str, str]  # SHA-256 of each array's bytes
    digest: str  # SHA-256 of all this and of the episodes


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An open shard; its arrays are the mapped file, which stays readable after the file is removed.

    At a URL, opening reads the header alone; the file is copied when its arrays are first needed.
    """

    path: Path
    data: Mapping[str, np.ndarray]  # N steps each
    kinds: Mapping[str, "np.ndarray | ArrayKind"]  # types and shapes of these
    entries: Sequence[tuple[str, str, int, int, int]]  # name, digest, first frame, frames, steps of each episode
    identity: Identity | None = None  # None: it was written before shards had checksums
    tasks: Mapping[str, str] = field(default_factory=dict)  # of the episodes that have one, by name

    @property
    def steps(self) -> list[int]:
        """The number of steps of each episode."""
        return [entry[-1] for entry in self.entries]

    def stored_episodes(self) -> list[StoredEpisode]:
        """The episodes, in order."""
        episodes, start = [], 0
        for name, digest, first, frames, steps in self.entries:
            episodes.append(
                StoredEpisode(
                    name=name,
                    digest=digest,
                    first_frame=first,
                    frames=frames,
                    steps=steps,
                    start=start,
                    task=self.tasks.get(name),
                )
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


def is_split_name(name: str) -> bool:
    """Whether a split may have this name: it is that of a folder inside the store, whatever the system."""
    return _SPLIT.fullmatch(name) is not None and _NAME.fullmatch(name) is None


def lost_shards(split_folder: Path) -> list[Path]:
    """Shards of a split that were recorded as written and exist neither as such nor in a later revision."""
    recorded = shard_paths(records_folder(split_folder))
    existing = shard_paths(split_folder)
    return [
        split_folder / record.name
        for number, record in recorded.items()
        if number not in existing or _revision(existing[number]) < _revision(record)
    ]


def split_folders(tokens_folder: Path) -> list[Path]:
    """The folders of splits that have shards."""
    if not tokens_folder.is_dir():
        return []
    return sorted(path for path in tokens_folder.iterdir() if path.name != RECORDS and shard_paths(path))


def shard_path(split_folder: Path, number: int) -> Path:
    """The path of a shard before any revision."""
    return split_folder / f"shard_{number:05d}"


def next_revision(shard: Path) -> Path:
    """The path of the revision that replaces `shard`."""
    return shard.with_name(f"{shard.name.partition('_r')[0]}_r{_revision(shard) + 1}")


def write_shard_file(
    folder: Path,
    episodes: Sequence[StoredEpisode],
    data: Sequence[Mapping[str, Tensor]],
    *,
    store: str,
    place: str,
) -> None:
    """Create a shard's folder with these episodes and the data of each.

    Optional arrays that only some of them have are unknown for the others.
    """
    folder.mkdir()
    known = {name: episode[name] for episode in data for name in OPTIONAL if name in episode}
    names = [*(name for name in data[0] if name not in OPTIONAL), *known]
    entries = list(zip(episodes, data, strict=True))
    tensors = {
        name: torch.cat([_or_unknown(name, values, entry.steps, known) for entry, values in entries]) for name in names
    }
    facts = {
        "store": store,
        "place": place,
        "checksums": {name: checksum(tensors[name].numpy()) for name in sorted(tensors)},
        "episodes": [[e.name, e.digest, e.first_frame, e.frames, e.steps] for e in episodes],
    }
    if tasks := {e.name: e.task for e in episodes if e.task is not None}:
        facts["tasks"] = tasks
    text = json.dumps(facts)
    # One key: safetensors writes several in random order.
    save_file(tensors, folder / SHARD_FILE, {_FACTS: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})


def _or_unknown(name: str, values: Mapping[str, Tensor], steps: int, like: Mapping[str, Tensor]) -> Tensor:
    """An array of an episode, or unknown values of the kind of `like` if it has none."""
    if name in values:
        return values[name]
    return torch.full((steps, *like[name].shape[1:]), OPTIONAL[name], dtype=like[name].dtype)


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def open_shard(path: Path) -> Shard:
    """Map a shard into memory and check that its header is whole and belongs there; `shard_checks` has other checks.

    Raises:
        FileNotFoundError: it no longer exists, because an update has replaced it.
        ValueError: it is damaged, or belongs to another store or place.
    """
    file = path / SHARD_FILE
    try:
        shard = _map(path, file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"TokenStore: {file} no longer exists: an update has replaced it since the store was opened; open the "
            f"store again or, if it was lost, {REMEDY}."
        ) from None
    except _DAMAGE as error:
        problem = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise damaged(path, problem) from None
    _check_identity(shard)
    return shard


def damaged(shard: Path, problem: str) -> ValueError:
    """The error about a damaged shard."""
    return ValueError(f"TokenStore: {shard / SHARD_FILE} is damaged ({problem}); {REMEDY}.")


def _check_identity(shard: Shard) -> None:
    path, identity = shard.path, shard.identity
    split = path.parent
    store, place = split.parent.name, f"{split.name}/{path.name}"
    if identity is not None and identity.store != store:
        raise damaged(path, f"it is a shard of other tokens, {identity.store}")
    if identity is not None and identity.place != place:
        raise damaged(path, f"it is the shard {identity.place}, not {place}")
    recorded = read_record(path)
    if recorded is not None and (identity is None or identity.digest != recorded):
        raise damaged(path, "it is not the shard that was written there")
    if identity is not None and identity.checksums.keys() != shard.data.keys():
        raise damaged(path, "its arrays are not those of its checksums")


def _map(path: Path, file: Path) -> Shard:
    if isinstance(file, UrlPath):
        return _map_later(path, file)
    if not is_regular_file(file):
        raise ValueError("it is no regular file")
    # The reader of safetensors makes the system read the whole file ahead: opening takes ten times as long.
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = _header_length(opened.read(8), size)
        header = json.loads(opened.read(length))
    entries, identity, tasks = _read_facts(header.pop("__metadata__"))
    data = map_arrays(file, header, 8 + length, size)
    return Shard(path=path, data=data, kinds=data, entries=entries, identity=identity, tasks=tasks)


def _header_length(start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if length > min(size, MAX_HEADER):
        raise ValueError("its header is truncated")
    return length


def _map_later(path: Path, file: UrlPath) -> Shard:
    """A shard at a URL, of which the header is read."""
    found = entry(str(file))
    start = read_range(str(file), 0, min(found.size, HEADER_BYTES))
    length = _header_length(start[:8], found.size)
    if len(start) < 8 + length:
        start = read_range(str(file), 0, 8 + length)
    header = json.loads(start[8 : 8 + length])
    entries, identity, tasks = _read_facts(header.pop("__metadata__"))
    data = CopiedArrays(file, header, 8 + length, found)
    return Shard(path=path, data=data, kinds=data.kinds, entries=entries, identity=identity, tasks=tasks)


def _read_facts(
    facts: Mapping[str, str],
) -> tuple[Sequence[tuple[str, str, int, int, int]], Identity | None, dict[str, str]]:
    """The entries of the episodes, the identity if the shard has one, and tasks, from the header's metadata."""
    if facts.keys() == {_EPISODES}:
        return json.loads(facts[_EPISODES]), None, {}
    if facts.keys() != {_FACTS}:
        raise ValueError("its header has no episodes")
    digest, _, text = facts[_FACTS].partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("its header differs from the header's checksum")
    values = json.loads(text)
    identity = Identity(store=values["store"], place=values["place"], checksums=values["checksums"], digest=digest)
    tasks = {str(name): str(task) for name, task in dict(values.get("tasks", {})).items()}
    return values["episodes"], identity, tasks


def _revision(shard: Path) -> int:
    match = _NAME.fullmatch(shard.name)
    assert match is not None
    return int(match["revision"] or 0)
