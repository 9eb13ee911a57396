"""Imagined episodes: a batch of rollouts from prompts, each with its own length, which start again one by one.

Shapes: b episodes, r some of them, t h w frames and pixels, f frames per latent step, a components of a continuous
action.
"""

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from world_model.decoding import Decoding
from world_model.envs.starts import Prompts, Start, Starts
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.imagination import Imagination
from world_model.rollout.worlds import load_world, world_prompts

logger = logging.getLogger(__name__)

World = str | Path | tuple[WorldModel, TokenizerAdapter]


@dataclass(frozen=True, kw_only=True)
class EpisodesStep:
    """One latent step of each episode."""

    frames: np.ndarray  # uint8 (b, f, h, w, 3)
    rewards: np.ndarray | None  # (b, f) float32; None for a world that predicts none
    terminated: np.ndarray  # (b,) bool; False for a world that predicts no ends
    truncated: np.ndarray  # (b,) bool: the episode has reached the horizon, and has not terminated
    state: np.ndarray | None = None  # (b, f, s) float32 in its own units; None for a world that predicts none


class ImaginedEpisodes:
    """Episodes of a world. `world`, `prompts`, `prompt_frames`, `horizon`, `sampler` and `decoding` are those of
    `ImaginedEnv`; `who` starts the error messages."""

    def __init__(
        self,
        world: World,
        count: int,
        *,
        prompts: Prompts | None,
        prompt_frames: int | None,
        horizon: int | None,
        sampler: Sampler | None,
        decoding: Decoding | None,
        device: torch.device | str | None,
        who: str,
    ) -> None:
        if isinstance(world, tuple):
            if prompts is None:
                raise ValueError(
                    f"{who}: prompts must be given with a model and its adapter; pass a folder of episodes."
                )
            if device is not None:
                raise ValueError(f"{who}: device is for worlds that are loaded, got {device}; move the model instead.")
            self.model, self.adapter = world
        else:
            self.model, self.adapter = load_world(world, device=device)
            prompts = world_prompts(world) if prompts is None else prompts
        f = self.model.tokens.temporal_factor
        if count < 1:
            raise ValueError(f"{who}: num_envs must be at least 1, got {count}.")
        if horizon is not None and (horizon < f or horizon % f):
            raise ValueError(
                f"{who}: horizon must be a positive number of frames, a multiple of {f} (the tokenizer's temporal "
                f"factor), or None, got {horizon}."
            )
        self.starts = Starts(self.model, prompts, prompt_frames, who)
        if count > 1 and self.starts.prompt_frames == 1 and self.adapter.tokenizer.architecture.version == "1.1":
            raise ValueError(
                f"{who}: prompt_frames must be at least {1 + f}, got 1: with a tokenizer of v1.1, environments cannot "
                "start again from one frame while others go on."
            )
        self.who, self.count, self.sampler, self.decoding = who, count, sampler or Sampler(), decoding
        self.last_step = None if horizon is None else horizon // f
        self.steps = np.zeros(count, dtype=np.int64)  # of each episode so far
        self.ended = np.ones(count, dtype=bool)  # episodes that have to start (again)
        self.imagination: Imagination | None = None
        if self.model.outcomes is None or self.model.outcomes.rewards is None:
            _warn_once(f"{who}: the world predicts no rewards, so all of them are 0.")

    def start(self, rows: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[Start]:
        """Let some episodes start from prompts that their generators draw; the first time, all of them must."""
        starts = [self.starts.draw(rng) for rng in rngs]
        device = self.model.device
        prompts = from_uint8(torch.from_numpy(np.stack([start.frames for start in starts])).to(device))
        known = [start.actions for start in starts if start.actions is not None]
        actions = torch.from_numpy(np.stack(known)).to(device) if known else None
        indices = [start.index for start in starts]
        state = _states_of(starts, device)
        if self.imagination is None:
            assert list(rows) == list(range(self.count))
            self.imagination = Imagination(
                self.model,
                self.adapter,
                prompts=prompts,
                actions=actions,
                sampler=self.sampler,
                decoding=self.decoding,
                indices=indices,
                state=state,
                who=self.who,
            )
        else:
            self.imagination.reset_rows(rows, prompts, actions, indices=indices, state=state)
        self.steps[list(rows)] = 0
        self.ended[list(rows)] = False
        return starts

    def step(self, actions: torch.Tensor | None) -> EpisodesStep:
        """Imagine a latent step of every episode under actions (b, f[, a]), in one call."""
        assert self.imagination is not None
        step = self.imagination.step(actions)
        self.steps = self.steps + 1
        terminated = np.zeros(self.count, dtype=bool) if step.terminated is None else step.terminated.cpu().numpy()
        truncated = np.zeros(self.count, dtype=bool) if self.last_step is None else self.steps >= self.last_step
        truncated = truncated & ~terminated
        self.ended = terminated | truncated
        return EpisodesStep(
            frames=self.newest,
            rewards=None if step.rewards is None else step.rewards.cpu().numpy(),
            terminated=terminated,
            truncated=truncated,
            state=None if step.state is None else step.state.cpu().numpy(),
        )

    @property
    def newest(self) -> np.ndarray:
        """The newest f frames of each episode, uint8 (b, f, h, w, 3), in new memory."""
        assert self.imagination is not None
        return to_uint8(self.imagination.frames)

    def fork(self) -> "ImaginedEpisodes":
        """The same episodes, which go on independently. They share their past without a copy, and draw the same random
        numbers."""
        twin = copy(self)
        twin.imagination = None if self.imagination is None else self.imagination.fork()
        twin.steps, twin.ended = self.steps.copy(), self.ended.copy()
        return twin


def _states_of(starts: Sequence[Start], device: torch.device) -> torch.Tensor | None:
    """The states (r, t, s) of prompts, NaN of those without; None if all are."""
    known = [start.state for start in starts if start.state is not None]
    if not known:
        return None
    unknown = np.full_like(known[0], np.nan)
    return torch.from_numpy(np.stack([unknown if x.state is None else x.state for x in starts])).to(device)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
