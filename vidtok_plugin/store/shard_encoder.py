"""ShardEncoder: writes planned shards of a split, those that are missing, damaged or stale. Its recipe makes others."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.freed_memory import keeping_freed_memory
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.encode import encode_sources
from vidtok_plugin.store.metadata import StoreMetadata, read_metadata
from vidtok_plugin.store.shard_checks import intact_shard
from vidtok_plugin.store.shards import Shard, StoredEpisode
from vidtok_plugin.store.sources import common_facts
from vidtok_plugin.store.writer import REDO, TokenStoreWriter
from vidtok_plugin.video.episode import Episode

logger = logging.getLogger(__name__)

Clip = tuple[StoredEpisode, Mapping[str, Tensor]]  # a source or a clip of it, as stored, with its data


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard of the plan with the episodes to write into it; it can be pickled."""

    number: int
    names: tuple[str, ...]  # of all its episodes
    sources: Mapping[str, Episode]  # those that are at hand, by name
    path: Path | None  # where it has been written, if it has


@dataclass(frozen=True, kw_only=True)
class _StaleShard:
    """A shard to write, because some of its episodes are new or have changed."""

    planned: PlannedShard
    digests: Mapping[str, str]  # of the episodes to encode, by name
    stored: Shard | None  # intact, with the other episodes


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """What another process needs to make the same encoder; the adapter is the one in the store. It can be pickled."""

    output: Path
    metadata: StoreMetadata
    config: TokenizeConfig

    def make(self, device: torch.device) -> "ShardEncoder":
        """An encoder in this process, on this device.

        Raises:
            FileNotFoundError: the store is not there.
            ValueError: it is another one, or damaged.
        """
        metadata = self.metadata
        if not (self.output / metadata.adapter_folder).is_dir():  # the store keeps its own, whose tokens are the same
            metadata = read_metadata(self.output)
        adapter = TokenizerAdapter.from_pretrained(self.output / metadata.adapter_folder).to(device)
        writer = TokenStoreWriter(self.output, metadata, update=self.config.update)
        return ShardEncoder(adapter, writer, metadata, self.config)


class ShardEncoder:
    """Encodes episodes into the shards of a split. Any number of them may write different shards of one store."""

    def __init__(
        self,
        adapter: TokenizerAdapter,
        writer: TokenStoreWriter,
        metadata: StoreMetadata,
        config: TokenizeConfig,
    ) -> None:
        self.adapter, self.writer, self.metadata, self.config = adapter, writer, metadata, config

    def recipe(self) -> EncoderRecipe:
        """For other processes."""
        return EncoderRecipe(output=self.writer.folder, metadata=self.metadata, config=self.config)

    def write(self, shards: Sequence[PlannedShard], *, progress: bool = False, description: str = "") -> None:
        """Check all of these shards and their episodes, then write those that are missing, damaged or stale.

        description: of the progress bar, by default the split.
        """
        for name, source in ((name, source) for shard in shards for name, source in shard.sources.items()):
            self.metadata.check_same(replace(self.metadata, **common_facts(self.adapter, source)), name)
        stale = [found for shard in shards if (found := self._find_stale(shard)) is not None]
        if count := sum(len(shard.digests) for shard in stale if shard.stored is not None):
            logger.info(
                "%s: %d episodes have changed since they were written; encoding them again", self.writer.folder, count
            )
        keep = self.config.keep_freed_memory and self.adapter.tokenizer.device.type == "cpu"
        with progress_bar(progress) as bar, keeping_freed_memory() if keep else nullcontext():
            total = sum(len(shard.digests) for shard in stale)
            done, encoding = 0, bar.add_task(description or f"tokens ({self.config.split})", total=total)
            for shard in stale:
                clips = _stored_clips(shard.stored)
                clips |= self._encode_clips(shard, partial(bar.advance, encoding))
                done += len(shard.digests)
                bar.update(encoding, completed=done)  # parts of an episode may not sum to 1
                planned = shard.planned
                entries, data = zip(*(clip for name in planned.names for clip in clips[name]), strict=True)
                self.writer.write_shard(self.config.split, entries, data, planned.number, replaces=planned.path)

    def _find_stale(self, shard: PlannedShard) -> _StaleShard | None:
        """The shard, if it is damaged, or has episodes that are new or whose files have changed."""
        stored = None if shard.path is None else self._intact_or_renewable(shard.path, shard)
        known = {} if stored is None else {episode.name: episode.digest for episode in stored.stored_episodes()}
        digests = {name: source.digest() for name, source in shard.sources.items()}
        stale = {name: digest for name, digest in digests.items() if digest != known.get(name)}
        if not self.config.update:  # what was written before stores kept states stays valid without them
            sources = shard.sources
            stale = {name: x for name, x in stale.items() if sources[name].digest_without_state() != known.get(name)}
        if (changed := next((name for name in stale if name in known), None)) and not self.config.update:
            raise ValueError(
                f"write_store: {changed} has changed since it was written to {self.writer.folder}; {REDO}, or write "
                "another store."
            )
        return _StaleShard(planned=shard, digests=stale, stored=stored) if stale else None

    def _intact_or_renewable(self, path: Path, shard: PlannedShard) -> Shard | None:
        """The shard at a path, read whole; None, with a warning, if it is damaged and all its videos are at hand."""
        try:
            return intact_shard(path, self.metadata)
        except (ValueError, FileNotFoundError) as error:
            if missing := [name for name in shard.names if name not in shard.sources]:
                raise ValueError(
                    f"{str(error).rstrip('.')}; its video {missing[0]} is not among those given."
                ) from None
            logger.warning("%s Writing it again now.", error)
            return None

    def _encode_clips(self, shard: _StaleShard, advance: Callable[[float], None]) -> dict[str, list[Clip]]:
        """The clips of each source that is new or has changed."""
        encoded = encode_sources(
            self.adapter,
            {name: shard.planned.sources[name] for name in shard.digests},
            clip_frames=self.config.clip_frames,
            chunk_frames=self.config.chunk_frames,
            batch=self.config.batch,
            advance=advance,
        )
        return {
            name: [
                (_entry(shard.planned.sources[name], name, shard.digests[name], frames, data), data)
                for frames, data in clips
            ]
            for name, clips in encoded.items()
        }


def _entry(source: Episode, name: str, digest: str, frames: range, data: Mapping[str, Tensor]) -> StoredEpisode:
    return StoredEpisode(
        name=name,
        first_frame=frames.start,
        frames=len(frames),
        steps=len(next(iter(data.values()))),
        digest=digest,
        task=source.task,
    )


def _stored_clips(shard: Shard | None) -> dict[str, list[Clip]]:
    """The clips of each source in a shard."""
    clips: dict[str, list[Clip]] = {}
    if shard is not None:
        for episode in shard.stored_episodes():
            clips.setdefault(episode.name, []).append((episode, shard.steps_of(episode)))
    return clips
