"""Tokenizing episodes into a store: plan its shards, have an engine write them, switch to them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_encoder import PlannedShard, ShardEncoder
from vidtok_plugin.store.shards import shard_paths
from vidtok_plugin.store.sources import Source, named_sources, store_metadata
from vidtok_plugin.store.staging import written_at
from vidtok_plugin.store.writer import TokenStoreWriter
from vidtok_plugin.video.episode import Episode

logger = logging.getLogger(__name__)

Engine = Callable[[ShardEncoder, Sequence[PlannedShard]], object]  # has the shards written, here or elsewhere


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What a call wrote."""

    written: tuple[int, ...]  # numbers of shards
    outdated: tuple[str, ...] = ()  # of an update: episodes that still have only previous tokens


def write_store(
    adapter: TokenizerAdapter,
    episodes: Sequence[Source],
    output: str | Path,
    *,
    split: str = "train",
    root: str | Path | None = None,
    clip_frames: int | None = None,
    size: tuple[int, int] | None = None,
    fit: Literal["crop", "pad", "stretch"] | None = None,
    fps: float | None = None,
    group_actions: Literal["concatenate", "sum"] | None = None,
    episodes_per_shard: int = 32,
    chunk_frames: int = 64,
    batch: int = 1,
    update: bool = False,
    keep_freed_memory: bool = True,
    progress: bool = False,
) -> TokenStore:
    """Encode `episodes`, append them to the store `output` and return that split of it.

    A path stands for a video without actions. Episodes that the store has already are skipped, so an interrupted call
    continues where it stopped, by whole shards. The settings are those of `TokenizeConfig`.

    An update (`update=True`) to another tokenizer needs a call for each split. The store serves the previous tokens
    until the new ones include all its episodes; the split that is returned has the new tokens at once.

    Raises:
        ValueError: episodes that differ from each other in size, rate or actions; without `update`, episodes that
            differ in these from the stored ones, or whose files have changed, or a store of another tokenizer; a video
            size that does not fit the tokenizer; a KL model without latent statistics.
    """
    config = TokenizeConfig(
        split=split,
        root=root,
        clip_frames=clip_frames,
        size=size,
        fit=fit,
        fps=fps,
        group_actions=group_actions,
        episodes_per_shard=episodes_per_shard,
        chunk_frames=chunk_frames,
        batch=batch,
        update=update,
        keep_freed_memory=keep_freed_memory,
        progress=progress,
    )

    def write(folder: Path) -> None:
        with split_lock(folder, split):
            write_shards(adapter, episodes, folder, config)

    written_at(output, write)
    return TokenStore(output, split, metadata=store_metadata(adapter, episodes[0], clip_frames, config.preparation))


def write_here(encoder: ShardEncoder, shards: Sequence[PlannedShard]) -> None:
    """The engine of one process: this one."""
    encoder.write(shards, progress=encoder.config.progress)


def write_shards(
    adapter: TokenizerAdapter,
    episodes: Sequence[Source],
    output: str | Path,
    config: TokenizeConfig,
    engine: Engine = write_here,
) -> WrittenShards:
    """Plan the shards of the episodes, have an engine write those that are missing or stale, and tidy up.

    Given the same episodes, the store is the same to the byte for any engine and after any interruptions. The caller
    holds the split's lock (`split_lock`). Errors are those of `write_store`, and of the engine.
    """
    _check_fit(adapter, episodes, config)
    with FolderLock(output, shared=True) as lock:  # with the commands that write other splits
        preparation = config.preparation
        sources = {name: preparation.of(episode) for name, episode in named_sources(episodes, config.root).items()}
        metadata = store_metadata(adapter, episodes[0], config.clip_frames, preparation)
        writer = TokenStoreWriter(output, metadata, adapter=adapter, update=config.update)
        _check_state_sizes(sources)
        folder = writer.split_folder(config.split)
        before = shard_paths(folder)
        planned = [
            PlannedShard(
                number=number,
                names=tuple(names),
                sources={name: sources[name] for name in names if name in sources},
                path=before.get(number),
            )
            for number, names in enumerate(plan_shards(folder, list(sources), config.episodes_per_shard))
            if not sources.keys().isdisjoint(names)
        ]
        new = sum(len(shard.names) for shard in planned if shard.path is None)
        logger.info("%s: %d of %d episodes to encode", output, new, len(sources))
        engine(ShardEncoder(adapter, writer, metadata, config), planned)
        written = tuple(number for number, path in shard_paths(folder).items() if path != before.get(number))
        return WrittenShards(written=written, outdated=_finish(writer, config, lock))


def split_lock(output: str | Path, split: str) -> FolderLock:
    """The lock of a split's only writer; other splits may be written at the same time."""
    return FolderLock(output, name=f".{split}.lock")


def _check_fit(adapter: TokenizerAdapter, episodes: Sequence[Source], config: TokenizeConfig) -> None:
    if not episodes:
        raise ValueError("write_store: there must be at least one episode, got none.")
    if adapter.kind == "continuous" and not adapter.has_latent_stats:
        raise ValueError(
            "write_store: the adapter of a KL model normalizes patches by latent statistics, which must have been "
            "fitted, got mean 0 and std 1; call adapter.fit_latent_stats(videos), or load an adapter that was saved "
            "with its own (TokenizerAdapter.from_pretrained)."
        )
    clip_frames, f = config.clip_frames, adapter.temporal_factor
    if clip_frames is not None and (clip_frames <= 1 or (clip_frames - 1) % f):
        below = 1 + max(1, (clip_frames - 1) // f) * f
        raise ValueError(
            f"write_store: clip_frames must be 1 + k * {f} ({f} is the tokenizer's temporal factor), got "
            f"{clip_frames}; the nearest that fit are {below} and {below + f}."
        )


def _check_state_sizes(episodes: Mapping[str, Episode]) -> None:
    """A ValueError if states have different numbers of components."""
    sizes: dict[int, str] = {}
    for name, episode in episodes.items():
        if episode.state is not None:
            sizes.setdefault(episode.state.shape[1], name)
    if len(sizes) > 1:
        (size, name), (other, another) = list(sizes.items())[:2]
        raise ValueError(
            f"write_store: all states must have equally many components, got {size} of {name} and {other} of {another};"
            " write another store."
        )


def _finish(writer: TokenStoreWriter, config: TokenizeConfig, lock: FolderLock) -> tuple[str, ...]:
    """Tidy up, and finish an update; returns the episodes that it does not include yet."""
    with lock.alone() as alone:
        if alone:  # else what looks left behind may belong to the command of another split
            writer.tidy(config.split)
    outdated = writer.switch() if config.update else ()
    if outdated:
        logger.warning(
            "%s serves its previous tokens until %d more episodes are tokenized with --update, with their own folder "
            "and --split: %s",
            *(writer.folder, len(outdated), f"{', '.join(outdated[:3])}{', ...' if len(outdated) > 3 else ''}"),
        )
    return outdated
