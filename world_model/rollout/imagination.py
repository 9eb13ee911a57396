"""An imagination: rollouts of a batch of prompts, advanced one latent step at a time, which can be forked.

Shapes: b rollouts, t h w frames and pixels, f frames per latent step, a components of a continuous action, H W rows and
columns of tokens, p values of a patch, s components of a frame's state.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.streams import TokenDecoderStream
from vidtok_plugin.common.precision import in_precision
from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.generation.generator import StepGenerator, check_rows
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.checks import (
    check_adapter,
    check_prompt,
    check_prompt_state,
    check_rollout_actions,
    check_step_actions,
)
from world_model.rollout.tokens import as_frames, encode_prompt, video_tokens_of


@dataclass(frozen=True, kw_only=True)
class ImaginedStep:
    """One latent step of an imagination."""

    frames: Tensor  # (b, 3, f, h, w) in [-1, 1]
    tokens: Tensor  # (b, H, W) codes or (b, H, W, p) patches
    rewards: Tensor | None  # (b, f) float32, the expected reward of each frame; None for a model that predicts none
    terminated: Tensor | None  # (b,) bool, whether the game ends with the step; None likewise
    entropy: Tensor | None  # (b, H, W) float32, nats: see `Imagination.step`
    state: Tensor | None  # (b, f, s) float32 in its own units; None for a model that predicts none


@dataclass(frozen=True, kw_only=True)
class _Past:
    """Prompts as an imagination continues them."""

    tokens: Tensor  # (b, T, H, W[, p])
    actions: GroupedActions | None
    state: Tensor | None  # (b, T, f, s)
    decoder: TokenDecoderStream  # after these tokens
    frames: Tensor  # the newest, (b, 3, f, h, w)


class Imagination:
    """Rollouts that are advanced step by step, under actions that are chosen on the way.

    `prompts` is video (b, 3, 1 + k f, h, w), uint8 or float in [-1, 1]. `actions` are those of the prompts, integers
    (b, t) or floats (b, t, a), one per frame; without them the model treats them as unknown. So are their states,
    `state` (b, t, s), in their own units. Each row draws its own
    random numbers, which depend only on the sampler's seed and the row's index, its place in the batch unless `indices`
    gives others. Frames are decoded without lookahead, because the next step waits for its actions. Values are checked
    on the CPU, and on other devices only with `validate`. `who` starts the error messages.

    Raises:
        ValueError: the adapter, the prompts, their actions or states, the sampler or the decoding don't fit the model.

    Example:
        imagination = Imagination(model, adapter, prompts=video, actions=actions)
        step = imagination.step(torch.full((1, 4), 3))  # step.frames: (1, 3, 4, h, w)
        other = imagination.fork()
        imagination.step(left), other.step(right)  # two futures of one past
    """

    def __init__(
        self,
        model: WorldModel,
        adapter: TokenizerAdapter,
        *,
        prompts: Tensor,
        actions: Tensor | None = None,
        sampler: Sampler | None = None,
        decoding: Decoding | None = None,
        indices: Sequence[int] | None = None,
        state: Tensor | None = None,
        validate: bool = False,
        who: str = "Imagination",
    ) -> None:
        check_adapter(model, adapter, who)
        self.model, self.adapter = model, adapter
        self.validate, self.who = validate, who
        decoding = decoding or Decoding()
        self._frame_decoder = in_precision(adapter.tokenizer, decoding.frame_precision)
        past = self._past(prompts, actions, state)
        self.generator = StepGenerator(
            model, past.tokens, past.actions, sampler or Sampler(), indices, decoding=decoding, state=past.state
        )
        self._decoder = past.decoder
        self.frames = past.frames  # the newest, (b, 3, f, h, w); a one-frame prompt is repeated

    @property
    def batch(self) -> int:
        """The number of rollouts, b."""
        return len(self.frames)

    @property
    def sampler(self) -> Sampler:
        """How tokens are drawn."""
        return self.generator.sampler

    @property
    def state_bytes(self) -> int:
        """Size of what it keeps of the past: the cache's buffers, the tokens, and the decoder's state."""
        return self.generator.state_bytes + self._decoder.num_bytes

    @torch.no_grad()
    def step(self, actions: Tensor | None = None, *, entropy: bool = False) -> ImaginedStep:
        """Imagine the next f frames under their actions (b, f) or (b, f, a); None for a model without actions.

        `entropy` also measures that of the distribution of each code, in nats, at temperature 1: how unsure the model
        was there. Patches have none.

        Raises:
            ValueError: the actions don't fit the model.
        """
        if (actions is None) != (self.model.tokens.actions.kind == "none"):
            raise ValueError(
                f"{self.who}: actions must be {'given' if actions is None else 'left out'}, since the world model was "
                f"trained {'with' if actions is None else 'without'} actions, got {actions}."
            )
        grouped = None
        if actions is not None:
            grouped = check_step_actions(self.model, actions, self.batch, self.who, validate=self.validate)
        tokens = self.generator.step(grouped, entropy=entropy)
        decoded = self._decoder.push(video_tokens_of(tokens[:, None], self.adapter.temporal_factor))
        self.frames = as_frames(decoded)
        outcomes = self.generator.outcomes
        return ImaginedStep(
            frames=self.frames,
            tokens=tokens,
            rewards=None if outcomes is None else outcomes.rewards,
            terminated=None if outcomes is None else outcomes.terminated,
            entropy=self.generator.entropy,
            state=self.generator.state,
        )

    def prepare(self) -> None:
        """Do now what the next step needs whatever its actions are, so that `step` gives its frames the sooner."""
        self.generator.prepare()

    def reset_rows(
        self,
        rows: Sequence[int],
        prompts: Tensor,
        actions: Tensor | None = None,
        *,
        indices: Sequence[int],
        state: Tensor | None = None,
    ) -> None:
        """Let some rollouts start again from other prompts (r, 3, 1 + k f, h, w), while the others go on as they are.

        Each row goes on as a new imagination of that prompt alone, with that one of `indices`, would.

        Raises:
            ValueError: rows are not r different ones, or the prompts or their actions don't fit the model. With a
                tokenizer of v1.1, prompts of one frame cannot join rows of more.
        """
        check_rows(rows, self.batch, self.who)
        past = self._past(prompts, actions, state)
        there = torch.tensor(list(rows), device=self.frames.device)
        all_rows = len(rows) == self.batch  # nothing of the old state stays, so the new one need not fit it
        decoder = (past.decoder if all_rows else self._decoder).fork()  # prompts that don't fit change nothing
        decoder.replace_rows(there, past.decoder)
        self.generator.reset_rows(rows, past.tokens, past.actions, indices, state=past.state)
        self._decoder = decoder
        self.frames = self.frames.index_copy(0, there, past.frames)

    def fork(self, futures: int = 1, indices: Sequence[int] | None = None) -> "Imagination":
        """An imagination of `futures` consecutive rollouts for each of these. They continue independently and share the
        past without a copy. They draw the same random numbers, or those of `indices`, one for each."""
        twin = copy(self)
        twin.generator = self.generator.fork(futures, indices)
        twin._decoder = self._decoder.fork(futures)
        twin.frames = self.frames.repeat_interleave(futures, dim=0)
        return twin

    def with_sampler(self, sampler: Sampler) -> "Imagination":
        """An independent imagination of the same past, whose tokens `sampler` draws.

        It draws the same random numbers as this one, or with another seed those of that seed.

        Raises:
            ValueError: the sampler doesn't fit the model.
        """
        twin = copy(self)
        twin.generator = self.generator.with_sampler(sampler)
        twin._decoder = self._decoder.fork()
        return twin

    @torch.no_grad()
    def _past(self, prompts: Tensor, actions: Tensor | None, state: Tensor | None) -> _Past:
        """Check and encode prompts (b, 3, 1 + k f, h, w) with their actions and states."""
        model, adapter = self.model, self.adapter
        video = check_prompt(model, adapter, prompts, self.who, validate=self.validate)
        batch, _, count = video.shape[:3]
        if actions is None and model.tokens.actions.kind != "none":
            past: GroupedActions | None = _unknown_actions(model, batch, count)
        else:
            past = check_rollout_actions(
                model, actions, batch, count, "those of the prompt", self.who, validate=self.validate
            )
        grouped_state = check_prompt_state(model, state, batch, count, self.who, validate=self.validate)
        tokens = encode_prompt(model, adapter, video)
        decoder = adapter.decoder_stream(lookahead=False, decoder=self._frame_decoder)
        decoder.push(video_tokens_of(tokens, count))
        f = adapter.temporal_factor
        newest = video[:, :, -f:]
        missing = newest[:, :, :1].expand(-1, -1, f - newest.shape[2], -1, -1)
        frames = torch.cat([missing, newest], dim=2)
        return _Past(tokens=tokens, actions=past, state=grouped_state, decoder=decoder, frames=frames)


def _unknown_actions(model: WorldModel, batch: int, frames: int) -> GroupedActions:
    spec, f = model.tokens.actions, model.tokens.temporal_factor
    shape = (batch, 1 + (frames - 1) // f, f)
    values = (
        torch.zeros(shape, dtype=torch.int64, device=model.device)
        if spec.kind == "discrete"
        else torch.zeros(*shape, spec.size, device=model.device)
    )
    return GroupedActions(values=values, known=torch.zeros(shape, dtype=torch.bool, device=model.device))
