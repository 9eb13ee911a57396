"""Where imagined episodes start: prompts from recorded episodes, drawn by a random number generator.

Shapes: t h w frames and pixels, f frames per latent step, a components of a continuous action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtok_plugin.common.paths import user_path
from vidtok_plugin.video.episodes import find_videos, load_episode
from vidtok_plugin.video.reading import probe, read_frames
from world_model.model import WorldModel

PROMPT_STEPS = 4  # latent steps of a prompt, unless its frames are given


@dataclass(frozen=True, kw_only=True)
class Start:
    """A prompt, and the index of the random numbers with which it is continued."""

    path: Path
    first_frame: int
    frames: np.ndarray  # uint8 (t, h, w, 3)
    actions: np.ndarray | None  # (t[, a]); None for a world without actions
    index: int


@dataclass(frozen=True, kw_only=True)
class _Recording:
    path: Path
    num_frames: int
    actions: np.ndarray | None


class Starts:
    """Prompts of `prompt_frames` frames, by default those of 4 latent steps, anywhere in the episodes `prompts`: a
    folder, or the paths of videos. A world with actions needs those of the episodes beside them.

    Raises:
        FileNotFoundError: there are no episodes, or one lacks its actions.
        ValueError: an episode is shorter than a prompt, or the length of prompts does not fit the model.
    """

    def __init__(
        self, model: WorldModel, prompts: str | Path | Sequence[str | Path], prompt_frames: int | None, who: str
    ) -> None:
        f = model.tokens.temporal_factor
        self.prompt_frames = 1 + (PROMPT_STEPS - 1) * f if prompt_frames is None else prompt_frames
        if self.prompt_frames < 1 or (self.prompt_frames - 1) % f:
            raise ValueError(
                f"{who}: prompt_frames must be 1 + k * {f} ({f} is the tokenizer's temporal factor), got "
                f"{self.prompt_frames}."
            )
        paths = find_videos(prompts) if isinstance(prompts, str | Path) else [user_path(path) for path in prompts]
        if not paths:
            raise ValueError(f"{who}: prompts must have at least one video, got none.")
        acts = model.tokens.actions.kind != "none"
        self._recordings = [_recording(path, acts) for path in paths]
        for recording in self._recordings:
            if recording.num_frames < self.prompt_frames:
                raise ValueError(
                    f"{who}: {recording.path} must have at least {self.prompt_frames} frames, got "
                    f"{recording.num_frames}; lower prompt_frames, or leave it out."
                )
        self.fps = probe(paths[0]).fps

    def draw(self, rng: np.random.Generator) -> Start:
        """A prompt from a random frame of a random episode."""
        recording = self._recordings[rng.integers(len(self._recordings))]
        first = int(rng.integers(recording.num_frames - self.prompt_frames + 1))
        frames = range(first, first + self.prompt_frames)
        return Start(
            path=recording.path,
            first_frame=first,
            frames=read_frames(recording.path, frames),
            actions=None if recording.actions is None else recording.actions[frames.start : frames.stop],
            index=int(rng.integers(2**32)),
        )


def _recording(path: Path, acts: bool) -> _Recording:
    if not acts:
        return _Recording(path=path, num_frames=probe(path).num_frames, actions=None)
    episode = load_episode(path)
    return _Recording(path=path, num_frames=episode.num_frames, actions=episode.actions)
