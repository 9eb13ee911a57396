"""Checking a store whole: every file in it is read and compared with its checksum and with the others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.url_path import local_copy
from vidtok_plugin.store.adapter import ADAPTER_REMEDY, adapter_problem
from vidtok_plugin.store.metadata import StoreMetadata, read_metadata
from vidtok_plugin.store.plan import read_plan
from vidtok_plugin.store.records import REMEDY, recorded_splits
from vidtok_plugin.store.shard_checks import intact_shard
from vidtok_plugin.store.shards import lost_shards, shard_paths, split_folders


@dataclass(frozen=True, kw_only=True)
class StoreCheck:
    """What `check_store` found."""

    shards: int
    episodes: int
    steps: int
    unsigned: int  # shards from before they had checksums, of which only sizes and values could be checked
    problems: tuple[str, ...]  # each a sentence with file and remedy; empty for an intact store


def check_store(folder: str | Path) -> StoreCheck:
    """Read a store whole: metadata, plans, every shard and the adapter.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: its metadata are damaged, so nothing else can be judged.

    Example:
        assert not check_store("runs/demo/tokens").problems
    """
    metadata = read_metadata(folder)
    tokens = as_path(folder) / metadata.tokens_folder
    shards, problems = [], [*_lost(tokens), *_adapter(as_path(folder), metadata)]
    for split in split_folders(tokens):
        try:
            read_plan(split)
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
        for path in shard_paths(split).values():
            try:
                shards.append(intact_shard(path, metadata))
            except (ValueError, FileNotFoundError) as error:
                problems.append(str(error))
    return StoreCheck(
        shards=len(shards),
        episodes=sum(len(shard.entries) for shard in shards),
        steps=sum(sum(shard.steps) for shard in shards),
        unsigned=sum(shard.identity is None for shard in shards),
        problems=tuple(dict.fromkeys(problems)),
    )


def _lost(tokens: Path) -> Iterator[str]:
    if not tokens.is_dir():
        yield f"TokenStore: {tokens}, the folder of the tokens, is missing; {REMEDY}."
    for split in sorted(recorded_splits(tokens)):
        for path in lost_shards(tokens / split):
            yield f"TokenStore: {path} was written and is missing; {REMEDY}."


def _adapter(store: Path, metadata: StoreMetadata) -> Iterator[str]:
    folder = store / metadata.adapter_folder
    if not folder.is_dir():
        yield f"TokenStore: {folder}, the adapter, is missing; {ADAPTER_REMEDY}."
    elif problem := adapter_problem(local_copy(folder), metadata.adapter_hash):
        yield (f"TokenStore: the adapter in {folder} is damaged ({problem}); {ADAPTER_REMEDY}.")
