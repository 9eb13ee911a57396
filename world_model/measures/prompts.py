"""Prompts for rollouts: segments of held-out recordings together with the real future.

Shapes: b prompts, t h w frames and pixels, a components of a continuous action, s components of a state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.episodes import load_episode
from vidtok_plugin.video.opening import open_episodes, open_videos
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.video_file import VideoFile

E = TypeVar("E", bound=Episode)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Segments of held-out episodes: prompts and their real futures."""

    video: Tensor  # (b, 3, t, h, w) in [-1, 1]: prompt and future
    actions: Tensor | None  # (b, t) or (b, t, a); None for recordings without actions
    prompt_frames: int
    state: Tensor | None = None  # (b, t, s); None for recordings without states

    def __len__(self) -> int:
        return len(self.video)

    @property
    def prompt(self) -> Tensor:
        return self.video[:, :, : self.prompt_frames]

    @property
    def prompt_state(self) -> Tensor | None:
        return None if self.state is None else self.state[:, : self.prompt_frames]

    @property
    def future(self) -> Tensor:
        return self.video[:, :, self.prompt_frames :]

    def to(self, device: torch.device) -> "Prompts":
        """A copy on a device."""
        actions, state = (None if x is None else x.to(device) for x in (self.actions, self.state))
        return replace(self, video=self.video.to(device), actions=actions, state=state)

    def batches(self, size: int) -> Iterator[tuple[range, "Prompts"]]:
        """Batches of at most `size` prompts, each with the indices of its prompts."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            actions, state = (None if x is None else x[rows] for x in (self.actions, self.state))
            batch = replace(self, video=self.video[rows], actions=actions, state=state)
            yield range(start, start + len(batch)), batch


def recordings(
    source: str | Path, *, with_actions: bool, with_state: bool = False, camera: str | None = None
) -> Sequence[Episode]:
    """The episodes of a source for `open_episodes`, or just its videos if neither actions nor states are needed.

    Raises:
        FileNotFoundError: there are none, or a video lacks its actions or JSON.
        ValueError: files are invalid, or episodes of another kind have no actions.
    """
    if not with_actions:
        return open_episodes(source, camera) if with_state else open_videos(source, camera)
    episodes = open_episodes(source, camera)
    for episode in episodes:
        if isinstance(episode, VideoFile):
            load_episode(episode.path)  # says which file is missing
        if episode.actions is None:
            raise ValueError(f"Episode {episode} has no actions, which the world model needs; add them, or remove it.")
    return episodes


def room_for(episodes: Sequence[Episode | Path], frames: int) -> int:
    """How many segments of `frames` frames fit into the episodes without overlap."""
    return len(_starts(episodes, frames))


def held_out_prompts(
    episodes: Sequence[Episode | Path], *, count: int, prompt_frames: int, future_frames: int
) -> Prompts:
    """`held_out_segments` as prompts; without actions, or without states, if an episode has none."""
    length = prompt_frames + future_frames
    chosen = held_out_segments(episodes, count, length)
    video = from_uint8(torch.stack([torch.from_numpy(episode.read(range(s, s + length))) for episode, s in chosen]))
    return Prompts(
        video=video,
        actions=_stacked([(episode.actions, s) for episode, s in chosen], length),
        prompt_frames=prompt_frames,
        state=_stacked([(episode.state, s) for episode, s in chosen], length),
    )


def _stacked(arrays: Sequence[tuple[np.ndarray | None, int]], length: int) -> Tensor | None:
    """`length` rows of each array from its start on, (b, t, ...); None if one is missing."""
    found = [torch.from_numpy(array[s : s + length]) for array, s in arrays if array is not None]
    return torch.stack(found) if len(found) == len(arrays) else None


def held_out_segments(episodes: Sequence[E | Path], count: int, length: int) -> list[tuple[E | VideoFile, int]]:
    """`count` segments of `length` frames without overlap, evenly spaced over the episodes: (episode, first frame)s.

    A path is the video file there, without actions.

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


def _starts(episodes: Sequence[E | Path], length: int) -> list[tuple[E | VideoFile, int]]:
    opened = [VideoFile.at(episode) if isinstance(episode, Path) else episode for episode in episodes]
    return [(episode, start) for episode in opened for start in range(0, episode.num_frames - length + 1, length)]
