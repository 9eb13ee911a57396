"""Videos to tokens: episodes are encoded and written into a token store, by one process or several."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track
from torch import Tensor

from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.hashing import hash_files
from vidtok_plugin.common.processes import THE_ONLY_PROCESS, Process
from vidtok_plugin.store.encode import clips_of, encode_episode, episode_facts, num_frames, video_of
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.reader import StoreMetadata, TokenStore
from vidtok_plugin.store.shards import Shard, StoredEpisode, open_shard, shard_paths
from vidtok_plugin.store.writer import REDO, TokenStoreWriter
from vidtok_plugin.tokenizer.presets import presets
from vidtok_plugin.video.episodes import Episode, actions_path

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

logger = logging.getLogger(__name__)

Part = tuple[StoredEpisode, Mapping[str, Tensor]]  # an episode, or a clip of it, and its steps


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What one process wrote, by number of shard, and what is still missing when it ends."""

    written: tuple[int, ...]
    missing: tuple[int, ...]  # other processes write them, or will once they are started again
    outdated: tuple[str, ...] = ()  # an update: when nothing is missing, what of the old tokens isn't redone yet


def write_store(
    adapter: "TokenizerAdapter",
    episodes: Sequence[Episode | Path],
    output: str | Path,
    *,
    split: str = "train",
    root: str | Path | None = None,
    clip_frames: int | None = None,
    episodes_per_shard: int = 32,
    chunk_frames: int = 64,
    update: bool = False,
    progress: bool = False,
) -> TokenStore:
    """Encode `episodes` and append them to the store `output`; -> that split of it.

    A path stands for a video without actions. Episodes that the store has already are left out, so that an
    interrupted call goes on where it stopped (by whole shards). They are known by their paths relative to
    `root`, or by their names alone.

    With `clip_frames`, 1 + k f of them, each video is cut into clips, the last frame of one being the first of
    the next, and each is encoded as a stream of its own and stored as an episode. A rollout's prompt is such a
    stream, whose first step is a single frame: a model that learns of whole videos alone seldom sees that.

    With `update`, what is stored is redone where it differs: episodes whose files have changed; and all of them, if
    the tokenizer is another one, or the videos' size, rate or actions are. New tokens are the store's only once every
    episode that it has, of all splits, is redone; so do that for each split. The split that comes back has them in
    any case.

    Raises:
        ValueError: episodes that differ in size, rate or actions from each other; those that differ so from what is
            stored, or have changed since, or another tokenizer's store, without `update`; a video whose size doesn't
            fit the tokenizer; a KL model without latent statistics.
    """
    write_shards(
        adapter,
        episodes,
        output,
        split=split,
        root=root,
        clip_frames=clip_frames,
        episodes_per_shard=episodes_per_shard,
        chunk_frames=chunk_frames,
        update=update,
        progress=progress,
    )
    return TokenStore(output, split, metadata=store_metadata(adapter, episodes[0], clip_frames))


def write_shards(
    adapter: "TokenizerAdapter",
    episodes: Sequence[Episode | Path],
    output: str | Path,
    *,
    split: str = "train",
    root: str | Path | None = None,
    clip_frames: int | None = None,
    episodes_per_shard: int = 32,
    chunk_frames: int = 64,
    update: bool = False,
    progress: bool = False,
    process: Process = THE_ONLY_PROCESS,
) -> WrittenShards:
    """One process's part of `write_store`: of the shards, which all processes plan alike, each writes every
    `world_size`-th. Given the same episodes, whatever the number of processes and however often they were
    stopped and started again, the store is the same to the byte.

    `episodes_per_shard` counts for new episodes: shards that are planned stay as they are. Each process checks
    the episodes of its own shards. Errors are those of `write_store`.
    """
    _check_settings(adapter, episodes, clip_frames, episodes_per_shard, chunk_frames)
    names = _names(episodes, root)
    given = dict(zip(names, episodes, strict=True))
    metadata = store_metadata(adapter, episodes[0], clip_frames)
    writer = TokenStoreWriter(output, metadata, adapter=adapter, update=update)
    folder = writer.split_folder(split)
    plan = plan_shards(folder, names, episodes_per_shard)
    ours = [number for number, shard in enumerate(plan) if not given.keys().isdisjoint(shard)]
    own = [number for number in ours if number % process.world_size == process.rank]
    paths = shard_paths(folder)
    missing = [number for number in ours if number not in paths]
    if process.rank == 0:
        logger.info("%s: %d of %d episodes to encode", output, sum(len(plan[n]) for n in missing), len(given))
        if 0 < len(missing) < process.world_size:
            logger.warning(
                "%s: there are only %d shards to write for %d processes; lower episodes_per_shard",
                *(output, len(missing), process.world_size),
            )
    there = {number: open_shard(paths[number]) for number in own if number in paths}
    digests, queue = {}, []
    for number in own:
        stored = {e.name: e.digest for e in there[number].stored_episodes()} if number in there else {}
        for name in plan[number]:
            if name not in given:
                continue  # it is stored, and its file has gone
            metadata.check_same(replace(metadata, **episode_facts(adapter, given[name])), name)
            digests[name] = _digest(given[name])
            if stored.get(name) == digests[name]:
                continue
            if name in stored and not update:
                raise ValueError(
                    f"write_store: {name} has changed since it was written to {output}; {REDO}, or write another store."
                )
            queue.append((number, name))
    if changed := sum(number in there for number, _ in queue):
        logger.info("%s: %d episodes have changed since they were written, and are redone", output, changed)
    bar = track(queue, f"tokens ({split})", disable=not progress or process.rank > 0)
    written = []
    for number, shard in groupby(bar, key=itemgetter(0)):
        old = there.get(number)
        parts = _stored_parts(old)
        for _, name in shard:
            parts[name] = _encoded_parts(adapter, given[name], name, digests[name], clip_frames, chunk_frames)
        entries, data = zip(*(part for name in plan[number] for part in parts[name]), strict=True)
        writer.write_shard(split, entries, data, number, instead_of=old.path if old is not None else None)
        written.append(number)
    writer.tidy(split)
    paths = shard_paths(folder)
    missing = [number for number in ours if number not in paths]
    outdated = writer.put_in_place() if update and not missing else ()
    if outdated:
        logger.warning(
            "%s keeps its old tokens until %d more episodes are redone by --update, with their own folder and --split: "
            "%s",
            *(output, len(outdated), f"{', '.join(outdated[:3])}{', ...' if len(outdated) > 3 else ''}"),
        )
    return WrittenShards(written=tuple(written), missing=tuple(missing), outdated=outdated)


def store_metadata(
    adapter: "TokenizerAdapter", episode: Episode | Path, clip_frames: int | None = None
) -> StoreMetadata:
    """What a store of such an adapter's tokens of such episodes tells of them."""
    architecture = adapter.tokenizer.architecture
    discrete = adapter.kind == "discrete"
    return StoreMetadata(
        adapter_hash=adapter.hash,
        token_hash=adapter.token_hash,
        tokenizer=to_dict(architecture),
        preset=next((name for name, preset in presets().items() if preset.architecture == architecture), None),
        kind=adapter.kind,
        codebook_size=adapter.codebook_size if discrete else None,
        fsq_levels=architecture.fsq_levels,
        patch_dim=None if discrete else adapter.patch_dim,
        temporal_factor=adapter.temporal_factor,
        clip_frames=clip_frames,
        **episode_facts(adapter, episode),
    )


def _stored_parts(shard: Shard | None) -> dict[str, list[Part]]:
    """What a shard has of each file; nothing if there is none yet."""
    parts: dict[str, list[Part]] = {}
    if shard is not None:
        for episode in shard.stored_episodes():
            parts.setdefault(episode.name, []).append((episode, shard.steps_of(episode)))
    return parts


def _encoded_parts(
    adapter: "TokenizerAdapter",
    episode: Episode | Path,
    name: str,
    digest: str,
    clip_frames: int | None,
    chunk_frames: int,
) -> list[Part]:
    parts: list[Part] = []
    for clip in clips_of(num_frames(episode), clip_frames):
        data = encode_episode(adapter, episode, clip, chunk_frames)
        steps = len(next(iter(data.values())))
        entry = StoredEpisode(name=name, first_frame=clip.start, frames=len(clip), steps=steps, digest=digest)
        parts.append((entry, data))
    return parts


def _names(episodes: Sequence[Episode | Path], root: str | Path | None) -> list[str]:
    paths = [video_of(episode) for episode in episodes]
    names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"write_store: the episodes' names must differ, got {twice} twice; tell their common root.")
    return names


def _digest(episode: Episode | Path) -> str:
    return hash_files(episode) if isinstance(episode, Path) else hash_files(episode.path, actions_path(episode.path))


def _check_settings(
    adapter: "TokenizerAdapter",
    episodes: Sequence[Episode | Path],
    clip_frames: int | None,
    episodes_per_shard: int,
    chunk_frames: int,
) -> None:
    if not episodes:
        raise ValueError("write_store: there must be at least one episode, got none.")
    if adapter.kind == "continuous" and not adapter.has_latent_stats:
        raise ValueError(
            "write_store: a KL model's patches are normalised by the adapter's latent statistics, which must have been "
            "fitted, got mean 0 and std 1; call adapter.fit_latent_stats(videos), or load an adapter that was saved "
            "with its own (TokenizerAdapter.from_pretrained)."
        )
    if min(episodes_per_shard, chunk_frames) < 1:
        raise ValueError(
            f"write_store: episodes_per_shard and chunk_frames must be at least 1, got {episodes_per_shard} "
            f"and {chunk_frames}."
        )
    f = adapter.temporal_factor
    if clip_frames is not None and (clip_frames <= 1 or (clip_frames - 1) % f):
        below = 1 + max(1, (clip_frames - 1) // f) * f
        raise ValueError(
            f"write_store: clip_frames must be 1 + k * {f} ({f} is the tokenizer's temporal factor), got "
            f"{clip_frames}; the nearest that fit are {below} and {below + f}."
        )
