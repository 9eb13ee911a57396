"""One episode's tokens: its frames encoded as a stream, chunk by chunk, with the actions that led to each step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.video.episodes import Episode
from vidtok_plugin.video.reading import probe, read_frames

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.adapter.tokens import VideoTokens


def encode_episode(
    adapter: "TokenizerAdapter", episode: Episode | Path, frames: range | None = None, chunk_frames: int = 64
) -> dict[str, Tensor]:
    """The codes (N, H, W) int32 of some frames of an episode, all by default, or a KL model's patches (N, H, W, d)
    float32; and its actions if it has any: actions (N, f[, a]) and num_actions (N,) uint8.

    `actions` are those that led to each step's frames: none for step 0, fewer than f for a last, partial step.
    """
    path = video_of(episode)
    frames = range(num_frames(episode)) if frames is None else frames
    if probe(path).num_frames != num_frames(episode):
        raise ValueError(
            f"Episode {path}: it must have one action for each frame, got {num_frames(episode)} actions for "
            f"{probe(path).num_frames} frames."
        )
    stream, parts = adapter.stream(), []
    for begin in range(0, len(frames), chunk_frames):
        chunk = torch.from_numpy(read_frames(path, frames[begin : begin + chunk_frames]))
        video = rearrange(chunk, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
        parts.append(_tokens(stream.push(video)))
    parts.append(_tokens(stream.flush()))
    tokens = torch.cat(parts)
    data = {"codes": tokens.int()} if adapter.kind == "discrete" else {"patches": tokens.float()}
    if isinstance(episode, Path):
        return data
    steps, f = len(tokens), adapter.temporal_factor
    actions = torch.from_numpy(episode.actions[frames.start : frames.stop])
    actions = actions.float() if actions.is_floating_point() else actions.long()
    grouped = actions.new_zeros(steps * f, *actions.shape[1:])
    grouped[f : f + len(frames) - 1] = actions[1:]
    data["actions"] = grouped.view(steps, f, *actions.shape[1:])
    data["num_actions"] = (len(frames) - 1 - (torch.arange(steps) - 1) * f).clamp(0, f).to(torch.uint8)
    data["num_actions"][0] = 0
    return data


def clips_of(num_frames: int, clip_frames: int | None) -> list[range]:
    """Where clips begin and end: each but the last has `clip_frames`, and shares a frame with the next."""
    if clip_frames is None:
        return [range(num_frames)]
    starts = range(0, max(1, num_frames - 1), clip_frames - 1)
    return [range(start, min(start + clip_frames, num_frames)) for start in starts]


def episode_facts(adapter: "TokenizerAdapter", episode: Episode | Path) -> dict[str, Any]:
    """What all episodes of a store must have in common, by the names of its metadata."""
    info = probe(video_of(episode))
    grid = adapter.grid(1, info.height, info.width)
    return {
        "height": grid.H,
        "width": grid.W,
        "fps": round(info.fps, 3) if isinstance(episode, Path) else float(episode.meta["fps"]),
        "action_space": {} if isinstance(episode, Path) else _action_space(episode),
    }


def num_frames(episode: Episode | Path) -> int:
    return probe(episode).num_frames if isinstance(episode, Path) else episode.num_frames


def video_of(episode: Episode | Path) -> Path:
    return episode if isinstance(episode, Path) else episode.path


def _tokens(tokens: "VideoTokens") -> Tensor:
    """One video's tokens (N, H, W[, d])."""
    return tokens.grid_values[0].cpu()


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
