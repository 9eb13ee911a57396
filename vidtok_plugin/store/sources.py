"""Sources of a store: the videos or episodes to tokenize, their names, and the facts that all must share.

A `Path` stands for a video without actions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.tokenizer.presets import presets
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.preparation import Preparation
from vidtok_plugin.video.video_file import as_episode

Source = Episode | Path


def named_sources(sources: Sequence[Source], root: str | Path | None) -> dict[str, Episode]:
    """Episodes by their names in a store: those of files are their paths relative to `root`, or their file names.

    Raises:
        ValueError: two sources have the same name.
    """
    episodes = [as_episode(source) for source in sources]
    names = [episode.name_from(None if root is None else as_path(root)) for episode in episodes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"write_store: the episodes' names must differ, got {twice} twice; give their common root.")
    return dict(zip(names, episodes, strict=True))


def store_metadata(
    adapter: TokenizerAdapter,
    source: Source,
    clip_frames: int | None = None,
    preparation: Preparation | None = None,
) -> StoreMetadata:
    """The metadata of a store with this adapter's tokens of `source`, so prepared, and others like it."""
    preparation = preparation or Preparation()
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
        preparation=preparation.facts() or None,
        **common_facts(adapter, preparation.of(as_episode(source))),
    )


def common_facts(adapter: TokenizerAdapter, source: Source) -> dict[str, Any]:
    """The fields of `StoreMetadata` that depend on the source and must be the same for all sources of a store."""
    episode = as_episode(source)
    try:
        grid = adapter.grid(1, *episode.size)
    except ValueError as error:
        raise ValueError(
            f"{str(error).rstrip('.')}; of {episode}; bring all videos to a size that fits with --size H W (size=)."
        ) from None
    return {
        "height": grid.H,
        "width": grid.W,
        "fps": episode.frame_rate(),
        "action_space": _action_space(episode),
    }


def _action_space(episode: Episode) -> dict[str, Any]:
    if episode.actions is None:
        return {}
    kind, space = "discrete" if episode.actions.ndim == 1 else "continuous", episode.action_space
    if "space" in space:
        return dict(space)
    if space.get("kind") != kind or space.get("size") is None:
        raise ValueError(
            f"Episode {episode}: it must describe the action space of its {kind} actions, in its JSON as "
            f'"action_space": {{"kind": "{kind}", "size": 4}}, in an array file as num_actions, got {dict(space)}.'
        )
    return dict(space)
