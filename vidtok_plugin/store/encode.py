"""Encoding an episode: a stream of its frames, chunk by chunk, with the actions and outcomes of each step."""

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.sources import Source, num_frames, video_path
from vidtok_plugin.video.episodes import RecordedEpisode
from vidtok_plugin.video.reading import probe, read_frames


def encode_episode(
    adapter: TokenizerAdapter, source: Source, frames: range | None = None, chunk_frames: int = 64
) -> dict[str, Tensor]:
    """The tokens of some frames of an episode, by default all: codes (N, H, W) int32, or patches (N, H, W, d) float32.

    If it has actions, also actions (N, f[, a]) and num_actions (N,) uint8: the actions that led to each step's frames,
    none for step 0, and fewer than f for a last, partial step. If it has rewards, also rewards (N, f) float32, NaN
    where there is no frame, and in step 0. If its JSON says whether it ended, also terminated (N,) uint8, 1 in the step
    of the frame that ended it.

    Raises:
        ValueError: the episode has another number of actions than frames.
    """
    path = video_path(source)
    frames = range(num_frames(source)) if frames is None else frames
    if probe(path).num_frames != num_frames(source):
        raise ValueError(
            f"Episode {path}: it must have one action for each frame, got {num_frames(source)} actions for "
            f"{probe(path).num_frames} frames."
        )
    stream, tokens = adapter.stream(), []
    for begin in range(0, len(frames), chunk_frames):
        chunk = torch.from_numpy(read_frames(path, frames[begin : begin + chunk_frames]))
        video = rearrange(chunk, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
        tokens.append(stream.push(video).grid_values[0].cpu())
    tokens.append(stream.flush().grid_values[0].cpu())
    steps = torch.cat(tokens)
    data = {"codes": steps.int()} if adapter.kind == "discrete" else {"patches": steps.float()}
    if isinstance(source, RecordedEpisode):
        data |= _grouped_actions(source, frames, len(steps), adapter.temporal_factor)
        data |= _outcomes(source, frames, len(steps), adapter.temporal_factor)
    return data


def clip_ranges(total: int, clip_frames: int | None) -> list[range]:
    """The frames of each clip of a video of `total` frames; the last frame of a clip is the first of the next.

    Clips have `clip_frames`, the last one perhaps fewer; without `clip_frames` the video is one clip.

    Example:
        >>> clip_ranges(11, 5)
        [range(0, 5), range(4, 9), range(8, 11)]
    """
    if clip_frames is None:
        return [range(total)]
    starts = range(0, max(1, total - 1), clip_frames - 1)
    return [range(start, min(start + clip_frames, total)) for start in starts]


def _grouped_actions(episode: RecordedEpisode, frames: range, steps: int, f: int) -> dict[str, Tensor]:
    actions = torch.from_numpy(episode.actions[frames.start : frames.stop])
    actions = actions.float() if actions.is_floating_point() else actions.long()
    grouped = actions.new_zeros(steps * f, *actions.shape[1:])
    grouped[f : f + len(frames) - 1] = actions[1:]
    num_actions = (len(frames) - 1 - (torch.arange(steps) - 1) * f).clamp(0, f).to(torch.uint8)
    num_actions[0] = 0
    return {"actions": grouped.view(steps, f, *actions.shape[1:]), "num_actions": num_actions}


def _outcomes(episode: RecordedEpisode, frames: range, steps: int, f: int) -> dict[str, Tensor]:
    data: dict[str, Tensor] = {}
    if episode.rewards is not None:
        grouped = torch.full((steps * f,), torch.nan)
        grouped[f : f + len(frames) - 1] = torch.from_numpy(episode.rewards[frames.start + 1 : frames.stop])
        data["rewards"] = grouped.view(steps, f)
    if episode.terminated is not None:
        data["terminated"] = torch.zeros(steps, dtype=torch.uint8)
        data["terminated"][-1] = episode.terminated and frames.stop == episode.num_frames
    return data
