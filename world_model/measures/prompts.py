"""Prompts for rollouts: segments of held-out recordings together with the real future.

Shapes: b prompts, t h w frames and pixels, a components of a continuous action.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.video.episodes import RecordedEpisode, find_episodes, find_videos
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.reading import count_frames, read_frames


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Segments of held-out episodes: prompts and their real futures."""

    video: Tensor  # (b, 3, t, h, w) in [-1, 1]: prompt and future
    actions: Tensor | None  # (b, t) or (b, t, a); None for recordings without actions
    prompt_frames: int

    def __len__(self) -> int:
        return len(self.video)

    @property
    def prompt(self) -> Tensor:
        return self.video[:, :, : self.prompt_frames]

    @property
    def future(self) -> Tensor:
        return self.video[:, :, self.prompt_frames :]

    def to(self, device: torch.device) -> "Prompts":
        """A copy on a device."""
        actions = None if self.actions is None else self.actions.to(device)
        return replace(self, video=self.video.to(device), actions=actions)

    def batches(self, size: int) -> Iterator[tuple[range, "Prompts"]]:
        """Batches of at most `size` prompts, each with the indices of its prompts."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            actions = None if self.actions is None else self.actions[rows]
            batch = replace(self, video=self.video[rows], actions=actions)
            yield range(start, start + len(batch)), batch


def recordings(folder: str | Path, *, with_actions: bool) -> Sequence[RecordedEpisode | Path]:
    """The recorded episodes of a folder, or just its videos if no actions are needed."""
    return find_episodes(folder) if with_actions else find_videos(folder)


def room_for(episodes: Sequence[RecordedEpisode | Path], frames: int) -> int:
    """How many segments of `frames` frames fit into the episodes without overlap."""
    return len(_starts(episodes, frames))


def held_out_prompts(
    episodes: Sequence[RecordedEpisode | Path], *, count: int, prompt_frames: int, future_frames: int
) -> Prompts:
    """`held_out_segments` as prompts."""
    length = prompt_frames + future_frames
    chosen = held_out_segments(episodes, count, length)
    videos = [torch.from_numpy(read_frames(_path(episode), range(s, s + length))) for episode, s in chosen]
    taken = [torch.from_numpy(ep.actions[s : s + length]) for ep, s in chosen if isinstance(ep, RecordedEpisode)]
    video = from_uint8(torch.stack(videos))
    return Prompts(video=video, actions=torch.stack(taken) if taken else None, prompt_frames=prompt_frames)


def held_out_segments(
    episodes: Sequence[RecordedEpisode | Path], count: int, length: int
) -> list[tuple[RecordedEpisode | Path, int]]:
    """`count` segments of `length` frames without overlap, evenly spaced over the episodes: (episode, first frame)s.

    Raises:
        ValueError: the episodes are too short for that many.
    """
    starts = _starts(episodes, length)
    if len(starts) < count:
        raise ValueError(
            f"held_out_prompts: count must be at most {len(starts)}, the number of segments of {length} frames in the "
            f"episodes, got {count}; record more, or ask for fewer."
        )
    return [starts[i] for i in np.linspace(0, len(starts) - 1, count).round().astype(int)]


def _starts(episodes: Sequence[RecordedEpisode | Path], length: int) -> list[tuple[RecordedEpisode | Path, int]]:
    counts = [count_frames(episode) if isinstance(episode, Path) else episode.num_frames for episode in episodes]
    return [
        (episode, start)
        for episode, count in zip(episodes, counts, strict=True)
        for start in range(0, count - length + 1, length)
    ]


def _path(episode: RecordedEpisode | Path) -> Path:
    return episode if isinstance(episode, Path) else episode.path
