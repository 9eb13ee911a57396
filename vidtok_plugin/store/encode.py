"""Encoding an episode: a stream of its frames, chunk by chunk, with the actions, outcomes and states of each step."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.sources import Source
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.video_file import as_episode


def encode_episode(
    adapter: TokenizerAdapter, source: Source, frames: range | None = None, chunk_frames: int = 64
) -> dict[str, Tensor]:
    """The tokens of some frames of an episode, by default all: codes (N, H, W) int32, or patches (N, H, W, d) float32.

    If it has actions, also actions (N, f[, a]) and num_actions (N,) uint8: the actions that led to each step's frames,
    none for step 0, and fewer than f for a last, partial step. If it has rewards, also rewards (N, f) float32, NaN
    where there is no frame, and in step 0. If its JSON says whether it ended, also terminated (N,) uint8, 1 in the step
    of the frame that ended it. If it has a state, also state (N, f, s) float32, NaN where there is no frame; the only
    frame of step 0 is the last of its f.

    Raises:
        ValueError: the episode has another number of actions than frames.
    """
    episode = as_episode(source)
    frames = range(episode.num_frames) if frames is None else frames
    stream, tokens = adapter.stream(), []
    for begin in range(0, len(frames), chunk_frames):
        chunk = torch.from_numpy(episode.read(frames[begin : begin + chunk_frames]))
        video = rearrange(chunk, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
        tokens.append(stream.push(video).grid_values[0].cpu())
    tokens.append(stream.flush().grid_values[0].cpu())
    steps = torch.cat(tokens)
    data = {"codes": steps.int()} if adapter.kind == "discrete" else {"patches": steps.float()}
    if episode.actions is not None:
        data |= _grouped_actions(episode.actions, frames, len(steps), adapter.temporal_factor)
    data |= _outcomes(episode, frames, len(steps), adapter.temporal_factor)
    if episode.state is not None:
        state = torch.from_numpy(episode.state[frames.start : frames.stop])
        data["state"] = group_state(state[None], adapter.temporal_factor)[0]
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


def group_state(state: Tensor, temporal_factor: int) -> Tensor:
    """Group the states (b, t, s) of frames by latent step: (b, T, f, s) float32, T = 1 + ceil((t - 1) / f).

    Step 0 has one frame, which is the last of its f. Frames that do not exist are NaN.

    Example:
        >>> group_state(torch.tensor([[[7.0], [1.0], [2.0], [3.0]]]), temporal_factor=2)[0, :, :, 0]
        tensor([[nan, 7.],
                [1., 2.],
                [3., nan]])
    """
    f, (b, t, size) = temporal_factor, state.shape
    grouped = state.new_full((b, (1 + -(-(t - 1) // f)) * f, size), torch.nan, dtype=torch.float32)
    grouped[:, f - 1 : f - 1 + t] = state
    return grouped.unflatten(1, (-1, f))


def _grouped_actions(of_episode: np.ndarray, frames: range, steps: int, f: int) -> dict[str, Tensor]:
    actions = torch.from_numpy(of_episode[frames.start : frames.stop])
    actions = actions.float() if actions.is_floating_point() else actions.long()
    grouped = actions.new_zeros(steps * f, *actions.shape[1:])
    grouped[f : f + len(frames) - 1] = actions[1:]
    num_actions = (len(frames) - 1 - (torch.arange(steps) - 1) * f).clamp(0, f).to(torch.uint8)
    num_actions[0] = 0
    return {"actions": grouped.view(steps, f, *actions.shape[1:]), "num_actions": num_actions}


def _outcomes(episode: Episode, frames: range, steps: int, f: int) -> dict[str, Tensor]:
    data: dict[str, Tensor] = {}
    if (rewards := episode.rewards) is not None:
        grouped = torch.full((steps * f,), torch.nan)
        grouped[f : f + len(frames) - 1] = torch.from_numpy(rewards[frames.start + 1 : frames.stop])
        data["rewards"] = grouped.view(steps, f)
    if episode.terminated is not None:
        data["terminated"] = torch.zeros(steps, dtype=torch.uint8)
        data["terminated"][-1] = episode.terminated and frames.stop == episode.num_frames
    return data
