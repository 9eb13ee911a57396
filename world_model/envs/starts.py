"""Where imagined episodes start: prompts from recorded episodes, drawn by a random number generator.

Shapes: t h w frames and pixels, f frames per latent step, a components of a continuous action, s components of a
frame's state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.opening import open_episodes, open_videos
from world_model.model import WorldModel

PROMPT_STEPS = 4  # latent steps of a prompt, unless its frames are given
FPS = 30.0  # of episodes that don't say

Prompts = str | Path | Sequence[str | Path | Episode]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A prompt, and the index of the random numbers with which it is continued."""

    episode: Episode
    first_frame: int
    frames: np.ndarray  # uint8 (t, h, w, 3)
    actions: np.ndarray | None  # (t[, a]); None for a world without actions
    index: int
    state: np.ndarray | None = None  # (t, s); None for a world without states, or an episode without


class Starts:
    """Prompts of `prompt_frames` frames, by default those of 4 latent steps, anywhere in the episodes `prompts`: a
    source for `open_episodes`, or several, or episodes that it gave. A world with actions needs theirs. Prompts are
    brought to the size and rate of the world's data, if it knows how its data were.

    Raises:
        FileNotFoundError: there are no episodes.
        ValueError: an episode is shorter than a prompt or lacks its actions, or the length of prompts does not fit the
            model.
    """

    def __init__(self, model: WorldModel, prompts: Prompts, prompt_frames: int | None, who: str) -> None:
        f = model.tokens.temporal_factor
        self.prompt_frames = 1 + (PROMPT_STEPS - 1) * f if prompt_frames is None else prompt_frames
        if self.prompt_frames < 1 or (self.prompt_frames - 1) % f:
            raise ValueError(
                f"{who}: prompt_frames must be 1 + k * {f} ({f} is the tokenizer's temporal factor), got "
                f"{self.prompt_frames}."
            )
        self._acts = model.tokens.actions.kind != "none"
        self._has_state = model.config.state is not None
        found = _opened(prompts, self._acts or self._has_state)
        self._episodes = [model.tokens.prepare(episode) for episode in found]
        if not self._episodes:
            raise ValueError(f"{who}: prompts must have at least one episode, got none.")
        for episode in self._episodes:
            if episode.num_frames < self.prompt_frames:
                raise ValueError(
                    f"{who}: {episode} must have at least {self.prompt_frames} frames, got {episode.num_frames}; lower "
                    "prompt_frames, or leave the episode out."
                )
            if self._acts and episode.actions is None:
                raise ValueError(f"{who}: {episode} must have actions, like the world; record them beside its frames.")
        self.fps = self._episodes[0].fps or FPS

    def draw(self, rng: np.random.Generator) -> Start:
        """A prompt from a random frame of a random episode."""
        episode = self._episodes[rng.integers(len(self._episodes))]
        first = int(rng.integers(episode.num_frames - self.prompt_frames + 1))
        frames = range(first, first + self.prompt_frames)
        return Start(
            episode=episode,
            first_frame=first,
            frames=episode.read(frames),
            actions=episode.actions[frames.start : frames.stop] if self._acts and episode.actions is not None else None,
            index=int(rng.integers(2**32)),
            state=episode.state[frames.start : frames.stop] if self._has_state and episode.state is not None else None,
        )


def _opened(prompts: Prompts, whole: bool) -> list[Episode]:
    episodes: list[Episode] = []
    for source in [prompts] if isinstance(prompts, str | Path) else prompts:
        if isinstance(source, str | Path):
            episodes += open_episodes(source) if whole else open_videos(source)
        else:
            episodes.append(source)
    return episodes
