"""What a page plays: a world, the prompts from which a game starts, and what its actions mean.

Shapes: t h w frames and pixels, f frames per latent step, a components of a continuous action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.video.episode_meta import read_meta
from vidtok_plugin.video.episodes import actions_path, find_videos, meta_path
from vidtok_plugin.video.video_file import as_episode
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.checks import check_prompt, check_prompt_state, check_rollout_actions
from world_model.rollout.files import as_models_data, as_video, read_actions, read_state
from world_model.rollout.imagination import Imagination
from world_model.rollout.worlds import load_world, world_prompts

PROMPT_STEPS = 3  # latent steps of a prompt after its first frame; fewer if the video is shorter
MAX_PROMPTS = 24  # a folder may hold thousands of episodes


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Recorded frames that a game starts from, with the actions between them and their states."""

    name: str
    frames: np.ndarray  # uint8 (1 + k f, h, w, 3)
    actions: Tensor | None  # (1, 1 + k f[, a]); None if they are not known, or the world takes none
    fps: float
    meta: Mapping[str, Any]  # the JSON beside the video; empty without one
    state: Tensor | None = None  # (1, 1 + k f, s); None if it is not known, or the world has none


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """The actions of a world, as a player sees them."""

    kind: str  # "none", "discrete", or "continuous" for vectors, some of whose components may be choices
    size: int
    meanings: Sequence[str]  # of each choice or component; their numbers if nothing says more
    low: Sequence[float] = ()  # of each component of a vector
    high: Sequence[float] = ()
    whole: Sequence[bool] = ()  # which components are choices, whole numbers from 0
    space: Mapping[str, Any] | None = None  # the description of the space that they come from

    @property
    def rest(self) -> int | tuple[float, ...] | None:
        """The action while no key is held: the one that is called NOOP, else the first; or the middle, nearest 0."""
        if self.kind == "none":
            return None
        if self.kind == "discrete":
            names = [meaning.upper() for meaning in self.meanings]
            return next((names.index(name) for name in ("NOOP", "NOTHING", "NONE") if name in names), 0)
        return tuple(min(max(0.0, low), high) for low, high in zip(self.low, self.high, strict=True))

    def check(self, action: object) -> int | tuple[float, ...]:
        """The action, as a ValueError unless it is one of these."""
        if self.kind == "discrete" and type(action) is int and 0 <= action < self.size:
            return action
        if (
            self.kind == "continuous"
            and isinstance(action, list)
            and len(action) == self.size
            and all(map(_within, action, self.low, self.high))
            and all(action[i] == int(action[i]) for i, whole in enumerate(self.whole) if whole)
        ):
            return tuple(float(value) for value in action)
        rule = {
            "none": "left out, since this world takes none",
            "discrete": f"an integer in 0..{self.size - 1}",
            "continuous": f"{self.size} numbers within the action space's bounds, whole ones for choices",
        }[self.kind]
        raise ValueError(f"play: an action must be {rule}, got {str(action)[:60]!r}.")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A world, ready to be played from any of its prompts."""

    name: str
    model: WorldModel
    adapter: TokenizerAdapter
    prompts: Sequence[Prompt]
    actions: ActionSpace

    @property
    def step_frames(self) -> int:
        """Video frames of a latent step, f."""
        return self.adapter.temporal_factor

    @property
    def guidable(self) -> bool:
        """Whether guidance can be other than 1."""
        return self.actions.kind != "none" and self.model.config.action_dropout > 0

    def begin(self, prompt: int, sampler: Sampler) -> Imagination:
        """The imagination of a prompt. Causal models draw in diagonal order, several times as fast as in raster."""
        chosen = self.prompts[prompt]
        return Imagination(
            self.model,
            self.adapter,
            prompts=as_video(chosen.frames, self.model.device),
            actions=chosen.actions,
            state=chosen.state,
            sampler=sampler,
            decoding=Decoding(order="diagonal") if self.model.config.prediction == "causal" else None,
            who="play",
        )


def load_scenes(source: str | Path, prompts: Path | None = None, device: str | None = None) -> Scenes:
    """The scenes of a world, a source for `load_world`, with its own prompts or the episodes of another folder.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the world is unknown, or a prompt does not fit it.
    """
    model, adapter = load_world(source, device=device)
    videos = world_prompts(source) if prompts is None else find_videos(prompts)
    chosen = [_read_prompt(model, video) for video in videos[:MAX_PROMPTS]]
    for prompt in chosen:  # one that does not fit is refused here, not when a player chooses it
        who = f"play: prompt {prompt.name}"
        check_prompt(model, adapter, as_video(prompt.frames, torch.device("cpu")), who, validate=False)
        if prompt.actions is not None:
            frames = len(prompt.frames)
            check_rollout_actions(model, prompt.actions, 1, frames, "those of the prompt", who, validate=True)
        check_prompt_state(model, prompt.state, 1, len(prompt.frames), who, validate=True)
    return Scenes(
        name=Path(source).name,
        model=model,
        adapter=adapter,
        prompts=chosen,
        actions=_action_space(model, chosen),
    )


def _read_prompt(model: WorldModel, video: Path) -> Prompt:
    prompt, f = as_models_data(model, video), model.tokens.temporal_factor
    episode = as_episode(prompt)
    steps = min(PROMPT_STEPS, (episode.num_frames - 1) // f, model.config.max_steps - 1)
    count = 1 + max(steps, 0) * f
    return Prompt(
        name=video.stem,
        frames=episode.read(range(count)),
        actions=read_actions(model, prompt, None, count) if actions_path(video).is_file() else None,
        state=read_state(model, prompt, count),
        fps=episode.fps or episode.frame_rate(),
        meta=read_meta(video) if meta_path(video).is_file() else {},
    )


def _action_space(model: WorldModel, prompts: Sequence[Prompt]) -> ActionSpace:
    """The model's actions, with the meanings and bounds that a prompt's JSON gives.

    Without bounds, a continuous action reaches as far as in the prompts and as usual, to both sides.
    """
    spec = model.tokens.actions
    spaces = [prompt.meta.get("action_space", {}) for prompt in prompts]
    space = next((space for space in spaces if isinstance(space, Mapping) and space.get("size") == spec.size), {})
    meanings = space.get("meanings")
    if spec.space is not None and spec.kind != "discrete":
        meanings = [component.name for component in spec.components]
    if not (isinstance(meanings, list) and len(meanings) == spec.size and all(isinstance(m, str) for m in meanings)):
        meanings = [str(i) for i in range(spec.size)]
    if spec.kind in ("none", "discrete"):
        return ActionSpace(kind=spec.kind, size=spec.size, meanings=meanings, space=spec.space)
    seen = [prompt.actions[0, 1:].cpu() for prompt in prompts if prompt.actions is not None]
    reach = torch.cat([*seen, *(bound[None] for bound in model.usual_actions())]).abs().amax(0).tolist()
    lows, highs = _bounds(space.get("low")) or [-x for x in reach], _bounds(space.get("high")) or reach
    for i, component in enumerate(spec.components):
        if component.choices:
            lows[i], highs[i] = 0.0, component.choices - 1.0
        else:  # a slider needs an end
            lows[i] = component.low if isfinite(component.low) else lows[i]
            highs[i] = component.high if isfinite(component.high) else highs[i]
    return ActionSpace(
        kind="continuous",
        size=spec.size,
        meanings=meanings,
        low=lows,
        high=highs,
        whole=[bool(component.choices) for component in spec.components],
        space=spec.space,
    )


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a number in a range; NaN is in none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _bounds(values: object) -> list[float] | None:
    if isinstance(values, list) and values and all(type(value) in (int, float) for value in values):
        return [float(value) for value in values]
    return None
