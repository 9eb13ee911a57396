"""Encoding an episode: a stream of its frames, chunk by chunk, with the actions, outcomes and states of each step."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.sources import Source
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.reading import READERS, ReaderPool
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
    return encode_batch(adapter, [(episode, frames)], chunk_frames)[0]


def encode_batch(
    adapter: TokenizerAdapter,
    clips: Sequence[tuple[Episode, range]],
    chunk_frames: int = 64,
    pool: ReaderPool | None = None,
) -> list[dict[str, Tensor]]:
    """What `encode_episode` gives for each of several episodes and frames of it, encoded together; of one size.

    A clip that is shorter than others in its chunk goes on with its last frame to the chunk's end: no later frame
    changes the tokens of the frames before it.
    """
    order = sorted(range(len(clips)), key=lambda i: -len(clips[i][1]))
    steps = _encode([clips[i] for i in order], adapter, chunk_frames, pool)
    by_clip = dict(zip(order, steps, strict=True))
    return [_with_signals(adapter, episode, frames, by_clip[number]) for number, (episode, frames) in enumerate(clips)]


def encode_sources(
    adapter: TokenizerAdapter,
    sources: Mapping[str, Episode],
    *,
    clip_frames: int | None,
    chunk_frames: int,
    batch: int = 1,
    advance: Callable[[float], None] = lambda episodes: None,
) -> dict[str, list[tuple[range, dict[str, Tensor]]]]:
    """The clips of each source in order, with their frames; `batch` of about the same length are encoded together.

    advance: is called with the number of episodes, or parts of one, that are done.
    """
    ranges = {name: clip_ranges(source.num_frames, clip_frames) for name, source in sources.items()}
    clips = [(name, frames) for name in sources for frames in ranges[name]]
    if batch > 1:
        clips.sort(key=lambda clip: -len(clip[1]))
    pool = ReaderPool(batch) if batch > READERS else None  # else readers would be closed and opened for each chunk
    done: dict[str, list[tuple[range, dict[str, Tensor]]]] = {name: [] for name in sources}
    for start in range(0, len(clips), batch):
        together = clips[start : start + batch]
        if batch == 1:
            ((name, frames),) = together
            encoded = [encode_episode(adapter, sources[name], frames, chunk_frames)]
        else:
            encoded = encode_batch(adapter, [(sources[name], frames) for name, frames in together], chunk_frames, pool)
        for (name, frames), data in zip(together, encoded, strict=True):
            done[name].append((frames, data))
            advance(1 / len(ranges[name]))
    if pool is not None:
        pool.clear()
    return {name: sorted(found, key=lambda clip: clip[0].start) for name, found in done.items()}


def _encode(
    clips: Sequence[tuple[Episode, range]], adapter: TokenizerAdapter, chunk_frames: int, pool: ReaderPool | None
) -> list[Tensor]:
    """The steps (N, H, W[, d]) of each clip; longer clips come first."""
    lengths, stream = [len(frames) for _, frames in clips], adapter.stream()
    parts: list[list[Tensor]] = [[] for _ in clips]
    begin, active = 0, len(clips)
    while active:
        end = min(begin + chunk_frames, lengths[0])
        chunk = np.stack(
            [_padded(episode.read(frames[begin:end], pool=pool), end - begin) for episode, frames in clips[:active]]
        )
        video = rearrange(torch.from_numpy(chunk), "b t h w c -> b c t h w").to(adapter.tokenizer.device)
        _append(parts[:active], stream.push(video).grid_values)
        begin, going = end, sum(length > end for length in lengths)
        if going < active:  # the others have ended, perhaps within a group of frames
            _append(parts[going:active], stream.rows(slice(going, active)).flush().grid_values)
            stream, active = stream.rows(slice(0, going)), going
    num_latents = adapter.tokenizer.num_latents
    return [torch.cat(steps)[: num_latents(length)] for steps, length in zip(parts, lengths, strict=True)]


def _append(parts: Sequence[list[Tensor]], steps: Tensor) -> None:
    for row, of_clip in zip(steps.cpu(), parts, strict=True):
        of_clip.append(row)


def _padded(frames: np.ndarray, length: int) -> np.ndarray:
    """Frames (t, h, w, 3), the last of them repeated up to a length."""
    missing = length - len(frames)
    return frames if missing == 0 else np.concatenate([frames, frames[-1:].repeat(missing, axis=0)])


def _with_signals(adapter: TokenizerAdapter, episode: Episode, frames: range, steps: Tensor) -> dict[str, Tensor]:
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
