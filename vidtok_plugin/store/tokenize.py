"""Tokenizing episodes into a store, with one process or several: plan, find stale episodes, encode, switch."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.progress import Progress
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.freed_memory import keeping_freed_memory
from vidtok_plugin.common.processes import THE_ONLY_PROCESS, Process
from vidtok_plugin.store.encode import clip_ranges, encode_episode
from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_checks import intact_shard
from vidtok_plugin.store.shards import SPLIT_RULE, Shard, StoredEpisode, is_split_name, shard_paths
from vidtok_plugin.store.sources import Source, common_facts, named_sources, store_metadata
from vidtok_plugin.store.writer import REDO, TokenStoreWriter
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.preparation import Preparation

logger = logging.getLogger(__name__)

Clip = tuple[StoredEpisode, Mapping[str, Tensor]]  # a source or a clip of it, as stored, with its data


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """How episodes become tokens in a store.

    split: the store's split to write to.
    root: episodes are named by their paths relative to it; without it, by their file names.
    clip_frames: 1 + k f; cut each video into clips of this many frames, the last frame of one being the first of the
        next, and encode and store each on its own. The first step of a clip is a single frame, like that of a
        rollout's prompt; a model trained on whole videos seldom sees such a step. None: whole videos.
    size, fit, fps, group_actions: of all videos in the store, whatever theirs; see `Preparation`. None: all must have
        the same size and rate, and keep them.
    episodes_per_shard: of new shards; shards that are already planned stay as they are.
    chunk_frames: frames that are encoded at once.
    update: replace what differs: episodes whose files have changed, or all of them if the tokenizer or the size, rate
        or actions of the videos are different.
    keep_freed_memory: on a CPU, keep the memory that a chunk frees for the next: faster, and a little more memory.
    progress: show a progress bar.
    """

    split: str = "train"
    root: str | Path | None = None
    clip_frames: int | None = None
    size: tuple[int, int] | None = None
    fit: Literal["crop", "pad", "stretch"] | None = None
    fps: float | None = None
    group_actions: Literal["concatenate", "sum"] | None = None
    episodes_per_shard: int = 32
    chunk_frames: int = 64
    update: bool = False
    keep_freed_memory: bool = True
    progress: bool = False

    @property
    def preparation(self) -> Preparation:
        """Of the episodes' frames."""
        return Preparation(size=self.size, fit=self.fit, fps=self.fps, group_actions=self.group_actions)

    def __post_init__(self) -> None:
        check_fields(self)
        if not is_split_name(self.split):
            raise ValueError(f"write_store: split must be {SPLIT_RULE}, got {self.split!r}.")
        if min(self.episodes_per_shard, self.chunk_frames) < 1:
            raise ValueError(
                "write_store: episodes_per_shard and chunk_frames must be at least 1, got "
                f"{self.episodes_per_shard} and {self.chunk_frames}."
            )
        Preparation(size=self.size, fit=self.fit, fps=self.fps, group_actions=self.group_actions)  # checks them


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What one process wrote, and what was still missing when it finished."""

    written: tuple[int, ...]  # numbers of shards
    missing: tuple[int, ...]  # numbers of shards that other processes have yet to write
    outdated: tuple[str, ...] = ()  # of an update with nothing missing: episodes that still have only previous tokens


@dataclass(frozen=True, kw_only=True)
class _StaleShard:
    """A shard to write, because some of its episodes are new or have changed."""

    number: int
    names: Sequence[str]  # of all its episodes
    digests: Mapping[str, str]  # of the episodes to encode, by name
    stored: Shard | None  # intact, with the other episodes
    replaces: Path | None  # the shard that it replaces


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
        update=update,
        keep_freed_memory=keep_freed_memory,
        progress=progress,
    )
    write_shards(adapter, episodes, output, config)
    return TokenStore(output, split, metadata=store_metadata(adapter, episodes[0], clip_frames, config.preparation))


def write_shards(
    adapter: TokenizerAdapter,
    episodes: Sequence[Source],
    output: str | Path,
    config: TokenizeConfig,
    process: Process = THE_ONLY_PROCESS,
) -> WrittenShards:
    """One process's work in `write_store`: all processes make the same plan, and each writes every world_size-th shard.

    Given the same episodes, the store is the same to the byte for any number of processes and after any interruptions.
    Each process checks the episodes of its own shards. Errors are those of `write_store`.
    """
    _check_fit(adapter, episodes, config)
    with FolderLock(output, shared=True) as lock:
        return _write_shards(adapter, episodes, output, config, process, lock)


def _write_shards(
    adapter: TokenizerAdapter,
    episodes: Sequence[Source],
    output: str | Path,
    config: TokenizeConfig,
    process: Process,
    lock: FolderLock,
) -> WrittenShards:
    preparation = config.preparation
    sources = {name: preparation.of(episode) for name, episode in named_sources(episodes, config.root).items()}
    metadata = store_metadata(adapter, episodes[0], config.clip_frames, preparation)
    writer = TokenStoreWriter(output, metadata, adapter=adapter, update=config.update)
    folder = writer.split_folder(config.split)

    plan = plan_shards(folder, list(sources), config.episodes_per_shard, alone=lock.is_alone)
    planned = {number: names for number, names in enumerate(plan) if not sources.keys().isdisjoint(names)}
    if process.rank == 0:
        _log_plan(output, planned, _missing(folder, planned), len(sources), process)

    own = {number: names for number, names in planned.items() if number % process.world_size == process.rank}
    for name in (name for names in own.values() for name in names if name in sources):
        metadata.check_same(replace(metadata, **common_facts(adapter, sources[name])), name)
    _check_state_sizes({name: sources[name] for names in own.values() for name in names if name in sources})
    stale = _find_stale(output, sources, own, shard_paths(folder), metadata, config)

    _encode_and_write(adapter, sources, stale, writer, config, show_progress=config.progress and process.rank == 0)
    missing = _missing(folder, planned)
    outdated = _finish(writer, config, lock, complete=not missing)
    return WrittenShards(written=tuple(shard.number for shard in stale), missing=missing, outdated=outdated)


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


def _missing(split_folder: Path, planned: Iterable[int]) -> tuple[int, ...]:
    written = shard_paths(split_folder)
    return tuple(number for number in planned if number not in written)


def _log_plan(
    output: str | Path, planned: Mapping[int, Sequence[str]], missing: Sequence[int], num_sources: int, process: Process
) -> None:
    logger.info("%s: %d of %d episodes to encode", output, sum(len(planned[n]) for n in missing), num_sources)
    if 0 < len(missing) < process.world_size:
        logger.warning(
            "%s: there are only %d shards to write for %d processes; lower episodes_per_shard",
            *(output, len(missing), process.world_size),
        )


def _find_stale(
    output: str | Path,
    sources: Mapping[str, Episode],
    planned: Mapping[int, Sequence[str]],
    paths: Mapping[int, Path],
    metadata: StoreMetadata,
    config: TokenizeConfig,
) -> list[_StaleShard]:
    """The planned shards that are damaged, or with episodes that are new or whose files have changed."""
    shards = []
    for number, names in planned.items():
        path = paths.get(number)
        stored = None if path is None else _intact_or_renewable(path, names, sources, metadata)
        known = {} if stored is None else {episode.name: episode.digest for episode in stored.stored_episodes()}
        digests = {name: sources[name].digest() for name in names if name in sources}
        stale = {name: digest for name, digest in digests.items() if digest != known.get(name)}
        if not config.update:  # what was written before stores kept states stays valid without them
            stale = {name: x for name, x in stale.items() if sources[name].digest_without_state() != known.get(name)}
        if (changed := next((name for name in stale if name in known), None)) and not config.update:
            raise ValueError(
                f"write_store: {changed} has changed since it was written to {output}; {REDO}, or write another store."
            )
        if stale:
            shards.append(_StaleShard(number=number, names=names, digests=stale, stored=stored, replaces=path))
    if count := sum(len(shard.digests) for shard in shards if shard.stored is not None):
        logger.info("%s: %d episodes have changed since they were written; encoding them again", output, count)
    return shards


def _intact_or_renewable(
    path: Path, names: Sequence[str], sources: Mapping[str, Episode], metadata: StoreMetadata
) -> Shard | None:
    """The shard at a path, read whole; None, with a warning, if it is damaged and all its videos are at hand."""
    try:
        return intact_shard(path, metadata)
    except (ValueError, FileNotFoundError) as error:
        if missing := [name for name in names if name not in sources]:
            raise ValueError(f"{str(error).rstrip('.')}; its video {missing[0]} is not among those given.") from None
        logger.warning("%s Writing it again now.", error)
        return None


def _encode_and_write(
    adapter: TokenizerAdapter,
    sources: Mapping[str, Episode],
    shards: Sequence[_StaleShard],
    writer: TokenStoreWriter,
    config: TokenizeConfig,
    *,
    show_progress: bool,
) -> None:
    keep = config.keep_freed_memory and adapter.tokenizer.device.type == "cpu"
    with Progress(disable=not show_progress) as bar, keeping_freed_memory() if keep else nullcontext():
        encoding = bar.add_task(f"tokens ({config.split})", total=sum(len(shard.digests) for shard in shards))
        for shard in shards:
            clips = _stored_clips(shard.stored)
            for name, digest in shard.digests.items():
                clips[name] = _encode_clips(adapter, sources[name], name, digest, config)
                bar.advance(encoding)
            entries, data = zip(*(clip for name in shard.names for clip in clips[name]), strict=True)
            writer.write_shard(config.split, entries, data, shard.number, replaces=shard.replaces)


def _stored_clips(shard: Shard | None) -> dict[str, list[Clip]]:
    """The clips of each source in a shard."""
    clips: dict[str, list[Clip]] = {}
    if shard is not None:
        for episode in shard.stored_episodes():
            clips.setdefault(episode.name, []).append((episode, shard.steps_of(episode)))
    return clips


def _encode_clips(
    adapter: TokenizerAdapter, source: Episode, name: str, digest: str, config: TokenizeConfig
) -> list[Clip]:
    clips: list[Clip] = []
    for frames in clip_ranges(source.num_frames, config.clip_frames):
        data = encode_episode(adapter, source, frames, config.chunk_frames)
        steps = len(next(iter(data.values())))
        entry = StoredEpisode(
            name=name,
            first_frame=frames.start,
            frames=len(frames),
            steps=steps,
            digest=digest,
            task=source.task,
        )
        clips.append((entry, data))
    return clips


def _finish(writer: TokenStoreWriter, config: TokenizeConfig, lock: FolderLock, *, complete: bool) -> tuple[str, ...]:
    """Tidy up, and finish an update whose shards are complete; returns the episodes that it does not include yet."""
    with lock.alone() as alone:
        if alone:  # else what looks left behind may belong to a process that still writes
            writer.tidy(config.split)
    outdated = writer.switch() if config.update and complete else ()
    if outdated:
        logger.warning(
            "%s serves its previous tokens until %d more episodes are tokenized with --update, with their own folder "
            "and --split: %s",
            *(writer.folder, len(outdated), f"{', '.join(outdated[:3])}{', ...' if len(outdated) > 3 else ''}"),
        )
    return outdated
