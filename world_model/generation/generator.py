"""Generating latent steps one after another from a past that a cache holds.

Shapes: b rollouts, T latent steps, H W rows and columns, n = H * W slots of a step, p values of a patch.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.decoding import Decoding, diagonal_groups, known_after, raster_groups
from world_model.generation.compiled import CompiledPosition
from world_model.heads.sampler import RolloutNoise, Sampler
from world_model.inputs.positions import at_positions
from world_model.model import StepContext, WorldModel
from world_model.transformer.cache import TransformerCache
from world_model.transformer.transformer import DecodeBlocks


class StepGenerator:
    """Rollouts in tokens, from the whole steps `tokens` (b, T, H, W[, p]) on; the state is its own, not the
    model's.

    A model sees `max_steps` latent steps. When they are full, the oldest `decoding.context_shift` are dropped and the
    rest re-prefilled, as a window of its own; so is a past that leaves no room for a step. Pasts of different lengths
    go together by their ends: `past_steps` tells how many steps of each row count, all without.

    The model's weights are to stay while it draws. The past's keys are computed, and some weights laid out, once a
    window, so that a change counts in part at once and whole from the next window on: start another then.
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
    ) -> None:
        if model.config.max_steps < 2:
            raise ValueError(
                "StepGenerator: the model's max_steps must be at least 2 to continue a past, got 1; train another."
            )
        batch, steps = tokens.shape[:2]
        if steps < 1:
            raise ValueError("StepGenerator: the past must have at least 1 latent step, got 0.")
        if indices is not None and len(indices) != batch:
            raise ValueError(f"StepGenerator: indices must name each of the {batch} rollouts, got {len(indices)}.")
        counts = [steps] * batch if past_steps is None else list(past_steps)
        if len(counts) != batch or min(counts) < 1 or max(counts) > steps:
            raise ValueError(
                f"StepGenerator: past_steps must be 1 to {steps} for each of the {batch} rollouts, got {counts}."
            )
        if actions is not None:
            _check_actions(actions, batch, steps, "the past's steps")
        model.head.check_sampler(sampler)
        self.guided = sampler.guidance != 1
        if self.guided and (actions is None or model.config.action_dropout == 0):
            raise ValueError(
                f"Sampler: guidance {sampler.guidance} needs a model that was trained with actions, and with "
                "model.action_dropout above 0; leave it out."
            )
        self.model, self.sampler, self.decoding = model, sampler, decoding or Decoding()
        self.order = self.decoding.order_for(model.config.prediction)
        self.noise = RolloutNoise(sampler.seed, range(batch) if indices is None else indices)
        self.model_calls = 0  # of the transformer, those that read in a window included
        tokens_of = model.tokens
        if self.order == "raster":
            self._groups = raster_groups(tokens_of.height, tokens_of.width, model.device)
        elif self.order == "diagonal":
            diagonal_offset = self.decoding.diagonal_offset or 1
            self._groups = diagonal_groups(tokens_of.height, tokens_of.width, diagonal_offset, model.device)
        self._compiled = CompiledPosition(model, sampler) if self.decoding.compiled else None
        self._keep = model.config.max_steps - self.decoding.moved_by(model.config.max_steps)
        self._tokens = tokens.to(model.dtype) if tokens.is_floating_point() else tokens
        self._actions = actions
        self._counts = torch.tensor(counts)  # on the host: no step waits for them
        self._lent = False  # whether forks read the cache's buffers
        self._layers: DecodeBlocks | None = None  # of the cache, looked up at its first step
        self._cache: TransformerCache = self._read(None)

    def step(self, actions: GroupedActions | None) -> Tensor:
        """Draw the next latent step (b, H, W[, p]) under its actions, one step of them."""
        if actions is not None:
            _check_actions(actions, len(self._tokens), 1, "the step")
        with torch.inference_mode():
            drawn = self._draw(actions)
        drawn = drawn.clone()  # an ordinary tensor, that a caller may use for training
        newest = slice(-self._keep, None)
        self._tokens = torch.cat([self._tokens, drawn[:, None]], dim=1)[:, newest]
        if self._actions is not None and actions is not None:
            self._actions = GroupedActions.cat([self._actions, actions])[newest]
        self._counts = self._counts + 1
        return drawn

    def fork(self, futures: int = 1, indices: Sequence[int] | None = None) -> "StepGenerator":
        """`futures` rollouts for each of these, side by side, that go on independently from one past, which is not
        copied. They draw the same random numbers, or those of `indices`, one for each."""
        twin = copy(self)
        twin._lent = False
        twin._cache, twin._layers = self._cache.fork(futures), None
        twin._tokens = self._tokens.repeat_interleave(futures, dim=0)
        twin._counts = self._counts.repeat_interleave(futures)
        if self._actions is not None:
            twin._actions = self._actions.repeated(futures)
        if indices is None:
            twin.noise = self.noise.fork(futures)
        elif len(indices) == len(twin._tokens):
            twin.noise = RolloutNoise(self.sampler.seed, indices)
        else:
            raise ValueError(
                f"StepGenerator: indices must name each of the {len(twin._tokens)} futures, got {len(indices)}."
            )
        self._lent = True
        return twin

    @property
    def state_bytes(self) -> int:
        """Of the cache's buffers and of the past's tokens."""
        return self._cache.num_bytes + self._tokens.numel() * self._tokens.element_size()

    def _draw(self, actions: GroupedActions | None) -> Tensor:
        model, tokens = self.model, self.model.tokens
        if self._cache.length + tokens.tokens_per_step > self._cache.capacity:
            self._cache = self._read(self._cache)
        if self._layers is None:
            laid_out = self.order == "raster" and self._compiled is None  # other orders' calls differ in their rows
            rows = self._cache.batch if laid_out else None
            self._layers = model.transformer.decode_blocks(self._cache, rows)
        previous = self._rows(self._tokens[:, -1])
        conditioning = self._conditioned_on(actions)
        context = model.step_context(previous, conditioning, self._cache, self._layers)
        if self.order == "masked":
            drawn = self._draw_masked(context)
            whole = self._rows(drawn.unflatten(1, (tokens.height, tokens.width)))
            self._cache = model.prefill(whole[:, None], conditioning, self._cache, previous)
            self.model_calls += 1
        else:
            drawn = self._draw_causal(context)
            self._cache = self._cache.advanced(tokens.tokens_per_step)
        return drawn.unflatten(1, (tokens.height, tokens.width))

    def _draw_causal(self, context: StepContext) -> Tensor:
        """In groups of slots, (b, n[, p])."""
        model, current = self.model, self._blank()
        per_token = model.head.noise_per_token
        noise = self._uniforms(model.tokens.tokens_per_step * per_token).unflatten(1, (-1, per_token))
        if self._compiled is not None:
            self._compiled.draw_step(current, context, self._cache, noise)
            self.model_calls += model.tokens.tokens_per_step
            return current
        for group in self._groups:
            hidden = model.step(self._rows(current), group, context, self._cache)
            uniforms = at_positions(noise, group.place)
            drawn = model.draw(hidden, group.place, context, uniforms, self.sampler, confidence=False).tokens
            if isinstance(group.place, int):
                current.narrow(1, group.place, 1).copy_(drawn)
            else:
                current.index_copy_(1, group.positions, drawn)
            self.model_calls += 1
        return current

    def _draw_masked(self, context: StepContext) -> Tensor:
        """All slots in each call, of which those drawn with the highest confidence stay, (b, n[, p])."""
        model, current = self.model, self._blank()
        n, per_token = model.tokens.tokens_per_step, model.head.noise_per_token
        counts = known_after(self.decoding.steps or 8, n)
        noise = self._uniforms(len(counts) * n * (per_token + 1)).unflatten(1, (len(counts), n, per_token + 1))
        known = torch.zeros(len(current), n, dtype=torch.bool, device=model.device)
        temperature = 1.0 if self.decoding.choice_temperature is None else self.decoding.choice_temperature
        for i, count in enumerate(counts):
            hidden = model.predict_masked(self._rows(current), self._rows(known), context, self._cache)
            drawn = model.draw(hidden, None, context, noise[:, i, :, :-1], self.sampler)
            chance = noise[:, i, :, -1].float().clamp(1e-6, 1 - 1e-6)
            if drawn.confidence is None:  # patches have none: any stay
                confidence = chance
            else:
                gumbel = -(-chance.log()).log()
                confidence = drawn.confidence + temperature * (1 - (i + 1) / len(counts)) * gumbel
            kept = confidence.masked_fill(known, float("inf")).topk(count, dim=1).indices
            now = known.scatter(1, kept, True)
            fresh = now & ~known
            current = torch.where(fresh[..., None] if current.ndim == 3 else fresh, drawn.tokens, current)
            known = now
            self.model_calls += 1
        return current

    def _blank(self) -> Tensor:
        """Room for a step's tokens, (b, n[, p])."""
        return self._tokens.new_zeros(self._tokens.shape[0], self.model.tokens.tokens_per_step, *self._tokens.shape[4:])

    def _uniforms(self, count: int) -> Tensor:
        """The next uniform numbers of each rollout, (b, count)."""
        return self.noise.uniforms(count).to(self.model.device, torch.float32, non_blocking=True)

    def _rows(self, x: Tensor) -> Tensor:
        """The model's rows for rollouts (b, ...): with guidance they come twice, told the actions and not."""
        return torch.cat([x, x]) if self.guided else x

    def _conditioned_on(self, actions: GroupedActions | None) -> GroupedActions | None:
        """The actions of the model's rows."""
        return actions.and_unknown() if self.guided and actions is not None else actions

    @torch.inference_mode(False)  # buffers of one kind, whenever they are made: a compiled call tells the kinds apart
    @torch.no_grad()
    def _read(self, cache: TransformerCache | None) -> TransformerCache:
        """The newest of the past steps, as a window of its own; in the old cache's buffers unless forks read them.

        A past that leaves room for a step is read as it is.
        """
        fits = cache is None and self._tokens.shape[1] < self.model.config.max_steps
        newest = slice(None) if fits else slice(-self._keep, None)
        self._tokens = self._tokens[:, newest]
        if self._actions is not None:
            self._actions = self._actions[newest]
        rows = self._rows(self._tokens)
        missing = (self._tokens.shape[1] - self._counts).clamp(min=0)
        padding = self._rows(missing.to(self.model.device, non_blocking=True)) if missing.any() else None
        if cache is None or cache.shared or self._lent:
            empty, self._lent = self.model.init_cache(len(rows), padding), False
        else:
            empty = self.model.emptied(cache, padding)
        self.model_calls += 1
        self._layers = None
        return self.model.prefill(rows, self._conditioned_on(self._actions), empty)


def _check_actions(actions: GroupedActions, batch: int, steps: int, what: str) -> None:
    """Actions of other steps than the tokens' would be told as theirs."""
    if actions.known.shape[:2] != (batch, steps):
        raise ValueError(
            f"StepGenerator: actions must be given for each of the {batch} rollouts and {steps} latent steps ({what}), "
            f"got {tuple(actions.known.shape[:2])}; group_actions makes them of one action for each frame."
        )
