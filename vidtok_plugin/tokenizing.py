"""Videos to tokens: episodes are encoded as streams, chunk by chunk, and written into a token store."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from rich.progress import track
from torch import Tensor

from vidtok_plugin.config import to_dict
from vidtok_plugin.hashing import hash_files
from vidtok_plugin.processes import THE_ONLY_PROCESS, Process
from vidtok_plugin.publishing import publish, remove_partials
from vidtok_plugin.shard_plan import plan_shards
from vidtok_plugin.store import (
    ADAPTER_FOLDER,
    StoredEpisode,
    StoreMetadata,
    TokenStore,
    TokenStoreWriter,
    read_episodes,
    shard_paths,
)
from vidtok_plugin.video.episodes import Episode, actions_path
from vidtok_plugin.video.reading import probe, read_frames

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.adapter.tokens import VideoTokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What one process wrote, by number of shard, and what is still missing when it ends."""

    written: tuple[int, ...]
    missing: tuple[int, ...]  # other processes write them, or will once they are started again


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
    progress: bool = False,
) -> TokenStore:
    """Encode `episodes` and append them to the store `output`; -> that split of it.

    A path stands for a video without actions. Episodes that the store has already are left out, so that an
    interrupted call goes on where it stopped (by whole shards). They are known by their paths relative to
    `root`, or by their names alone.

    With `clip_frames`, 1 + k f of them, each video is cut into clips, the last frame of one being the first of
    the next, and each is encoded as a stream of its own and stored as an episode. A rollout's prompt is such a
    stream, whose first step is a single frame: a model that learns of whole videos alone seldom sees that.

    Raises:
        ValueError: episodes that differ in size, rate or actions from each other or from what is stored, or
            have changed since; a video whose size doesn't fit the tokenizer; another tokenizer's store.
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
        progress=progress,
    )
    return TokenStore(output, split)


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
    metadata = replace(_metadata(adapter, episodes[0]), clip_frames=clip_frames)
    writer = TokenStoreWriter(output, metadata)
    publish(Path(output) / ADAPTER_FOLDER, adapter.save_pretrained)
    folder = Path(output) / split
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
    digests = {}
    for number in own:
        stored = {e.name: e.digest for e in read_episodes(paths[number])} if number in paths else {}
        for name in plan[number]:
            if name not in given:
                continue  # it is stored, and its file has gone
            metadata.check_same(replace(metadata, **_facts(adapter, given[name])), name)
            digests[name] = _digest(given[name])
            if stored.get(name, digests[name]) != digests[name]:
                raise ValueError(
                    f"write_store: {name} has changed since it was written to {output}; remove the store, or write "
                    "another."
                )
    queue = [(number, name) for number in own if number not in paths for name in plan[number]]
    bar = track(queue, f"tokens ({split})", disable=not progress or process.rank > 0)
    written = []
    for number, shard in groupby(bar, key=itemgetter(0)):
        entries, data = [], []
        for _, name in shard:
            for clip in _clips(_num_frames(given[name]), clip_frames):
                data.append(encode_episode(adapter, given[name], clip, chunk_frames))
                steps, first = len(data[-1]["codes"]), clip.start
                entries.append(
                    StoredEpisode(name=name, first_frame=first, steps=steps, frames=len(clip), digest=digests[name])
                )
        writer.write_shard(split, entries, data, number)
        written.append(number)
    remove_partials(folder)
    remove_partials(Path(output))
    paths = shard_paths(folder)
    return WrittenShards(written=tuple(written), missing=tuple(number for number in ours if number not in paths))


def encode_episode(
    adapter: "TokenizerAdapter", episode: Episode | Path, frames: range | None = None, chunk_frames: int = 64
) -> dict[str, Tensor]:
    """The codes (N, H, W) int32 of some frames of an episode, all by default; and its actions if it has any:
    actions (N, f[, a]) and num_actions (N,) uint8.

    `actions` are those that led to each step's frames: none for step 0, fewer than f for a last, partial step.
    """
    path = episode if isinstance(episode, Path) else episode.path
    frames = range(_num_frames(episode)) if frames is None else frames
    if probe(path).num_frames != _num_frames(episode):
        raise ValueError(
            f"Episode {path}: it must have one action for each frame, got {_num_frames(episode)} actions for "
            f"{probe(path).num_frames} frames."
        )
    stream, codes = adapter.stream(), []
    with torch.no_grad():
        for begin in range(0, len(frames), chunk_frames):
            chunk = torch.from_numpy(read_frames(path, frames[begin : begin + chunk_frames]))
            video = rearrange(chunk, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
            codes.append(_codes(stream.push(video)))
        codes.append(_codes(stream.flush()))
    data = {"codes": torch.cat(codes).to("cpu", torch.int32)}
    if isinstance(episode, Path):
        return data
    steps, f = len(data["codes"]), adapter.temporal_factor
    actions = torch.from_numpy(episode.actions[frames.start : frames.stop])
    grouped = actions.new_zeros(steps * f, *actions.shape[1:])
    grouped[f : f + len(frames) - 1] = actions[1:]
    data["actions"] = grouped.view(steps, f, *actions.shape[1:])
    data["num_actions"] = (len(frames) - 1 - (torch.arange(steps) - 1) * f).clamp(0, f).to(torch.uint8)
    data["num_actions"][0] = 0
    return data


def _clips(num_frames: int, clip_frames: int | None) -> list[range]:
    """Where clips begin and end: each but the last has `clip_frames`, and shares a frame with the next."""
    if clip_frames is None:
        return [range(num_frames)]
    starts = range(0, max(1, num_frames - 1), clip_frames - 1)
    return [range(start, min(start + clip_frames, num_frames)) for start in starts]


def _codes(tokens: "VideoTokens") -> Tensor:
    """One video's codes (N, H, W)."""
    return rearrange(tokens.ids, "1 (N H W) -> N H W", H=tokens.grid.H, W=tokens.grid.W)


def _metadata(adapter: "TokenizerAdapter", episode: Episode | Path) -> StoreMetadata:
    architecture = adapter.tokenizer.architecture
    return StoreMetadata(
        adapter_hash=adapter.hash,
        tokenizer=to_dict(architecture),
        codebook_size=adapter.codebook_size,
        fsq_levels=architecture.fsq_levels,
        temporal_factor=adapter.temporal_factor,
        **_facts(adapter, episode),
    )


def _facts(adapter: "TokenizerAdapter", episode: Episode | Path) -> dict[str, Any]:
    """What all episodes of a store must have in common."""
    info = probe(episode if isinstance(episode, Path) else episode.path)
    grid = adapter.grid(1, info.height, info.width)
    return {
        "height": grid.H,
        "width": grid.W,
        "fps": round(info.fps, 3) if isinstance(episode, Path) else float(episode.meta["fps"]),
        "action_space": {} if isinstance(episode, Path) else _action_space(episode),
    }


def _action_space(episode: Episode) -> dict[str, Any]:
    space = dict(episode.meta.get("action_space", {}))
    kind = "discrete" if episode.actions.ndim == 1 else "continuous"
    size = space.get("size", None if kind == "discrete" else episode.actions.shape[1])
    if space.get("kind", kind) != kind or size is None:
        raise ValueError(
            f"Episode {episode.path}: its JSON must tell the action space of its {kind} actions, such as "
            f'{{"kind": "{kind}", "size": 4}}, got {space}.'
        )
    return {**space, "kind": kind, "size": size}


def _num_frames(episode: Episode | Path) -> int:
    return probe(episode).num_frames if isinstance(episode, Path) else episode.num_frames


def _names(episodes: Sequence[Episode | Path], root: str | Path | None) -> list[str]:
    paths = [episode if isinstance(episode, Path) else episode.path for episode in episodes]
    names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"write_store: the episodes' names must differ, got {twice} twice; tell their common root.")
    return names


def _digest(episode: Episode | Path) -> str:
    path = episode if isinstance(episode, Path) else episode.path
    return hash_files(path) if isinstance(episode, Path) else hash_files(path, actions_path(path))


def _check_settings(
    adapter: "TokenizerAdapter",
    episodes: Sequence[Episode | Path],
    clip_frames: int | None,
    episodes_per_shard: int,
    chunk_frames: int,
) -> None:
    if not episodes:
        raise ValueError("write_store: there must be at least one episode, got none.")
    if adapter.kind != "discrete":
        raise ValueError(f"write_store: the adapter must be discrete (FSQ), got {adapter.kind}; a store holds codes.")
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
