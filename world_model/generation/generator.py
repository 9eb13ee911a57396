"""Generating latent steps one after another from a past.

Shapes: b rollouts, T latent steps, H W rows and columns, p values of a patch, f frames a step, s components of a state.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.generation.drawing import make_drawing
from world_model.generation.finite_weights import check_finite_weights
from world_model.generation.precision import in_decoding_precision
from world_model.generation.window import ContextWindow
from world_model.heads.outcomes import Outcomes
from world_model.heads.sampler import RolloutNoise, Sampler
from world_model.inputs.state import checked_state
from world_model.inputs.token_checks import checked_tokens
from world_model.model import WorldModel


class StepGenerator:
    """Draws the latent steps that follow the whole steps `tokens` (b, T, H, W[, p]). It owns the rollouts' state.

    A model sees `max_steps` latent steps. When they are full, the oldest `decoding.context_shift` are dropped and the
    rest re-prefilled as a new window; a rolling context drops its oldest step alone, and keeps the keys of the others.
    A past that leaves no room for a step is shortened likewise. Pasts of different lengths are aligned at their ends:
    only the last `past_steps` steps of each row count, by default all. Each row has a context of its own, and draws
    what it would draw alone.

    A model with states reads those of the past, `state` (b, T, f, s), NaN where unknown, all of them by default. Those
    that it predicts for a step are part of the past of the next.

    The model's weights must not change while it draws. The past's keys are computed, and some weights prepacked, once
    per window, so a change would take effect partly at once and fully in the next window. Start a new generator then.

    Example:
        >>> from world_model import TokenSpec, TransformerConfig, WorldModelConfig
        >>> tokens = TokenSpec(codebook_size=16, height=2, width=2, temporal_factor=4)
        >>> config = WorldModelConfig(tokens=tokens, transformer=TransformerConfig(width=32, depth=1, heads=2))
        >>> past = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
        >>> generator = StepGenerator(WorldModel(config).eval(), past, None, Sampler(seed=0))
        >>> generator.step(None).shape
        torch.Size([1, 2, 2])
    """

    def __init__(
        self,
        model: WorldModel,
        tokens: Tensor,
        actions: GroupedActions | None,
        sampler: Sampler,
        indices: Sequence[int] | None = None,
        *,
        decoding: Decoding | None = None,
        past_steps: Sequence[int] | None = None,
        state: Tensor | None = None,
    ) -> None:
        if model.config.max_steps < 2:
            raise ValueError(
                "StepGenerator: the model's max_steps must be at least 2 to continue a past, got 1; train another."
            )
        check_finite_weights(model)
        decoding = decoding or Decoding()
        model = in_decoding_precision(model, decoding)
        tokens, counts = _checked_past(model, tokens, actions, indices, past_steps)
        _check_sampler(model, sampler, actions)
        self.model, self.sampler, self.decoding = model, sampler, decoding
        self.noise = RolloutNoise(sampler.seed, range(len(tokens)) if indices is None else indices)
        self.drawing = make_drawing(model, sampler, decoding)
        rolling = decoding.context_for(model.config) == "rolling"
        self.window = ContextWindow(
            model,
            tokens,
            actions,
            counts,
            context_shift=1 if rolling else decoding.context_shift_for(model.config.max_steps),
            rolling=rolling,
            sampler=sampler,
            state=_checked_state(model, state, tokens),
        )
        self.outcomes: Outcomes | None = None  # of the newest step that was drawn, if the model predicts any
        self.state: Tensor | None = None  # (b, f, s) likewise
        self.entropy: Tensor | None = None  # (b, H, W) of the newest step, if it was asked for; None for patches
        self._drawing_calls = 0

    def step(self, actions: GroupedActions | None, *, entropy: bool = False) -> Tensor:
        """Draw the next latent step (b, H, W[, p]) under its actions (of one step).

        `entropy`: also measure that of each code's distribution at temperature 1, in nats, as `self.entropy`.
        """
        window, tokens = self.window, self.model.tokens
        if actions is not None:
            _check_actions(actions, len(window.tokens), 1, "the step")
        with torch.inference_mode():
            context = window.next_step(actions, self.drawing.tokens_per_call)
            before = window.tokens[:, -1].flatten(1, 2)
            noise = self.noise.uniforms(self.drawing.noise_per_step)
            noise = noise.to(self.model.device, torch.float32, non_blocking=True)
            drawn = self.drawing.draw(before, context, window.cache, noise, entropy=entropy)
            state = None
            if drawn.hidden is not None:
                self.outcomes = self.model.step_outcomes(drawn.hidden, drawn.tokens, before, context.tables)
                state = self.model.step_states(drawn.hidden, drawn.tokens, before, context)
        self.state = None if state is None else state.clone()
        self._drawing_calls += drawn.calls
        size = (tokens.height, tokens.width)
        step = drawn.tokens.clone().unflatten(1, size)  # an ordinary tensor, fit for training
        self.entropy = None if drawn.entropy is None else drawn.entropy.clone().unflatten(1, size)
        window.append(step, actions, self.state, in_cache=self.drawing.fills_cache)
        return step

    def reset_rows(
        self,
        rows: Sequence[int],
        tokens: Tensor,
        actions: GroupedActions | None,
        indices: Sequence[int],
        *,
        past_steps: Sequence[int] | None = None,
        state: Tensor | None = None,
    ) -> None:
        """Let some rollouts continue the pasts `tokens` (r, T, H, W[, p]), whose states are (r, T, f, s), with random
        numbers of `indices`, from their beginning; the others go on as they are. Each row is as a new generator of that
        row alone would be.

        Raises:
            ValueError: rows are not r different ones of the batch, or the pasts don't fit the model or each other.
        """
        check_rows(rows, len(self.window.tokens), "StepGenerator")
        if len(tokens) != len(rows):
            raise ValueError(
                f"StepGenerator: tokens must be a past for each of the {len(rows)} rows, got {len(tokens)}."
            )
        if (actions is None) != (self.window.actions is None):
            raise ValueError(
                f"StepGenerator: actions must be {'left out' if actions is not None else 'given'}, as for the pasts "
                "that the rollouts began with."
            )
        tokens, counts = _checked_past(self.model, tokens, actions, indices, past_steps)
        order = torch.tensor(rows).argsort()
        there = order.to(tokens.device)
        self.window.reset(
            torch.tensor(rows)[order],
            tokens[there],
            None if actions is None else actions.rows(there),
            counts[order],
            None if (states := _checked_state(self.model, state, tokens)) is None else states[there],
        )
        self.noise.restart(rows, indices)

    def prepare(self) -> None:
        """Do now what the next step needs whatever its actions are: where the context is full, the re-prefill. `step`
        does it otherwise; a player who is waited for has no delay by it."""
        with torch.inference_mode():
            self.window.make_room()

    def fork(self, futures: int = 1, indices: Sequence[int] | None = None) -> "StepGenerator":
        """`futures` consecutive rollouts for each of these. They continue independently and share the past without a
        copy. They draw the same random numbers, or those of `indices`, one for each."""
        count = futures * len(self.window.tokens)
        if indices is not None and len(indices) != count:
            raise ValueError(f"StepGenerator: indices must name each of the {count} futures, got {len(indices)}.")
        twin = copy(self)
        twin.outcomes = twin.entropy = twin.state = None
        twin.window = self.window.fork(futures)
        twin.noise = self.noise.fork(futures) if indices is None else RolloutNoise(self.sampler.seed, indices)
        return twin

    def with_sampler(self, sampler: Sampler) -> "StepGenerator":
        """An independent rollout for each of these, of the same past, whose tokens `sampler` draws.

        It draws the same random numbers as this one, or with another seed those of that seed. They share the past
        without a copy, unless guidance begins or ends: then it re-prefills the newest steps.
        """
        _check_sampler(self.model, sampler, self.window.actions)
        twin = copy(self)
        twin.outcomes = twin.entropy = twin.state = None
        twin.window = self.window.with_sampler(sampler)
        same_seed = sampler.seed == self.sampler.seed
        twin.noise = self.noise.fork() if same_seed else RolloutNoise(sampler.seed, self.noise.indices)
        twin.sampler, twin.drawing = sampler, make_drawing(self.model, sampler, self.decoding)
        return twin

    @property
    def model_calls(self) -> int:
        """Calls of the transformer so far, including prefills."""
        return self._drawing_calls + self.window.prefills

    @property
    def state_bytes(self) -> int:
        """Size of the cache's buffers and of the past's tokens."""
        return self.window.num_bytes


def check_rows(rows: Sequence[int], batch: int, who: str) -> None:
    """A ValueError unless these are different rows of a batch, at least one."""
    if len(rows) == 0 or len(set(rows)) != len(rows) or not all(0 <= row < batch for row in rows):
        raise ValueError(
            f"{who}: rows must be different ones of the {batch} rollouts, 0 to {batch - 1}, got {list(rows)}."
        )


def _checked_past(
    model: WorldModel,
    tokens: Tensor,
    actions: GroupedActions | None,
    indices: Sequence[int] | None,
    past_steps: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """The checked tokens (b, T, H, W[, p]) of pasts, and how many of each row's steps count, (b,) on the CPU so that no
    step waits for them."""
    tokens = checked_tokens(tokens, model.tokens, model.dtype, validate=True)
    batch, steps = tokens.shape[:2]
    if batch < 1 or steps < 1:
        raise ValueError(
            f"StepGenerator: the past must have at least 1 rollout and 1 latent step, got {batch} and {steps}."
        )
    if indices is not None and len(indices) != batch:
        raise ValueError(f"StepGenerator: indices must name each of the {batch} rollouts, got {len(indices)}.")
    counts = [steps] * batch if past_steps is None else list(past_steps)
    if len(counts) != batch or min(counts) < 1 or max(counts) > steps:
        raise ValueError(
            f"StepGenerator: past_steps must be 1 to {steps} for each of the {batch} rollouts, got {counts}."
        )
    if actions is not None:
        _check_actions(actions, batch, steps, "the past's steps")
    return tokens, torch.tensor(counts)


def _checked_state(model: WorldModel, state: Tensor | None, tokens: Tensor) -> Tensor | None:
    """The checked states (b, T, f, s) of pasts, unknown by default; None for a model without states."""
    f = model.tokens.temporal_factor
    if model.config.state is None or model.config.state.size is None:
        if state is not None:
            raise ValueError("StepGenerator: the model was built without states (model.state); leave them out.")
        return None
    size = model.config.state.size
    if state is None:
        return torch.full((*tokens.shape[:2], f, size), torch.nan, device=model.device)
    return checked_state(state, size, f, *tokens.shape[:2], validate=True).to(model.device)


def _check_sampler(model: WorldModel, sampler: Sampler, actions: GroupedActions | None) -> None:
    """A ValueError unless the model can draw as the sampler says."""
    model.head.check_sampler(sampler)
    if sampler.guided and (actions is None or model.config.action_dropout == 0):
        raise ValueError(
            f"Sampler: guidance {sampler.guidance} needs a model that was trained with actions, and with "
            "model.action_dropout above 0; leave it out."
        )


def _check_actions(actions: GroupedActions, batch: int, steps: int, what: str) -> None:
    """A ValueError unless there are actions for each rollout and step."""
    if actions.known.shape[:2] != (batch, steps):
        raise ValueError(
            f"StepGenerator: actions must be given for each of the {batch} rollouts and {steps} latent steps ({what}), "
            f"got {tuple(actions.known.shape[:2])}; make them with group_actions from one action per frame."
        )
