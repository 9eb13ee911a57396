"""Sources of a store: the videos or episodes to tokenize, their names and digests, and the facts that all must share.

A `Path` stands for a video without actions.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.hashing import hash_files
from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.tokenizer.presets import presets
from vidtok_plugin.video.episode_meta import frame_rate
from vidtok_plugin.video.episodes import RecordedEpisode, actions_path, rewards_path
from vidtok_plugin.video.reading import probe

Source = RecordedEpisode | Path


def named_sources(sources: Sequence[Source], root: str | Path | None) -> dict[str, Source]:
    """Sources by their names in a store: their paths relative to `root`, or their file names.

    Raises:
        ValueError: two sources have the same name.
    """
    paths = [video_path(source) for source in sources]
    names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"write_store: the episodes' names must differ, got {twice} twice; give their common root.")
    return dict(zip(names, sources, strict=True))


def file_digest(source: Source) -> str:
    """SHA-256 of the source's files, and of whether it ended if its JSON says so."""
    if isinstance(source, Path):
        return hash_files(source)
    files = [source.path, actions_path(source.path)]
    digest = hash_files(*files) if source.rewards is None else hash_files(*files, rewards_path(source.path))
    if source.terminated is None:
        return digest
    return hashlib.sha256(f"{digest} terminated={source.terminated}".encode()).hexdigest()


def store_metadata(adapter: TokenizerAdapter, source: Source, clip_frames: int | None = None) -> StoreMetadata:
    """The metadata of a store with this adapter's tokens of `source` and others like it."""
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
        **common_facts(adapter, source),
    )


def common_facts(adapter: TokenizerAdapter, source: Source) -> dict[str, Any]:
    """The fields of `StoreMetadata` that depend on the source and must be the same for all sources of a store."""
    info = probe(video_path(source))
    grid = adapter.grid(1, info.height, info.width)
    return {
        "height": grid.H,
        "width": grid.W,
        "fps": round(info.fps, 3) if isinstance(source, Path) else frame_rate(source.path, source.meta),
        "action_space": {} if isinstance(source, Path) else _action_space(source),
    }


def num_frames(source: Source) -> int:
    return probe(source).num_frames if isinstance(source, Path) else source.num_frames


def video_path(source: Source) -> Path:
    return source if isinstance(source, Path) else source.path


def _action_space(episode: RecordedEpisode) -> dict[str, Any]:
    space = dict(episode.meta.get("action_space", {}))
    kind = "discrete" if episode.actions.ndim == 1 else "continuous"
    size = space.get("size", None if kind == "discrete" else episode.actions.shape[1])
    if space.get("kind", kind) != kind or size is None:
        raise ValueError(
            f"Episode {episode.path}: its JSON must describe the action space of its {kind} actions, such as "
            f'{{"kind": "{kind}", "size": 4}}, got {space}.'
        )
    return {**space, "kind": kind, "size": size}
