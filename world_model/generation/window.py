"""The context window of rollouts: their newest latent steps, with keys and values in a cache.

Shapes: b rollouts, T latent steps, H W rows and columns, n = H * W positions of a step, p values of a patch.
"""

from copy import copy

import torch
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.transformer.cache import TransformerCache
from world_model.transformer.transformer import DecodeBlocks


class ContextWindow:
    """At most `max_steps` latent steps, from which the next one is drawn.

    A full window drops its oldest `context_shift` steps and re-prefills the rest as a new window. Weights are
    looked up once per window. With guidance, the model has two rows for each rollout: with its actions, and without.
    """

    def __init__(
        self,
        model: WorldModel,
        tokens: Tensor,
        actions: GroupedActions | None,
        past_steps: Tensor,
        *,
        context_shift: int,
        sampler: Sampler,
    ) -> None:
        """`tokens` (b, T, H, W[, p]), checked before.

        `past_steps` (b,), on the CPU: steps of each row after padding in front.
        """
        self.model, self.sampler = model, sampler
        self.validate = False if model.tokens.kind == "discrete" else None  # drawn patches may overflow, codes cannot
        self.kept_steps = model.config.max_steps - context_shift
        self.tokens = tokens.to(model.dtype) if tokens.is_floating_point() else tokens
        self.actions = actions
        self.past_steps = past_steps
        self.forked = False  # whether forks read the cache's buffers
        self.prefills = 0
        self.blocks: DecodeBlocks | None = None
        if tokens.shape[1] >= model.config.max_steps:
            self._drop_oldest()
        self.cache = self._prefilled(None)

    def next_step(self, actions: GroupedActions | None, tokens_per_call: int | None) -> StepContext:
        """The context for drawing the next step under its actions; makes room for it in the cache.

        Weights are prepacked if every call has the same number of tokens, `tokens_per_call`.
        """
        if self.cache.length + self.model.tokens.tokens_per_step > self.cache.capacity:
            self.cache = self._prefilled(None if self.cache.shared or self.forked else self.cache)
            self.blocks, self.forked = None, False
        if self.blocks is None:
            rows = None if tokens_per_call is None else self.cache.batch * tokens_per_call
            self.blocks = self.model.transformer.decode_blocks(self.cache, rows)
        return self.model.step_context(self._newest(), self._row_actions(actions), self.cache, self.blocks)

    def append(self, step: Tensor, actions: GroupedActions | None, *, in_cache: bool) -> None:
        """Append a step (b, H, W[, p]) that was drawn. `in_cache`: drawing it wrote its keys and values."""
        if in_cache:
            self.cache = self.cache.advanced(self.model.tokens.tokens_per_step)
        else:
            with torch.inference_mode():
                rows = self.sampler.model_rows(step)[:, None]
                actions_of_rows = self._row_actions(actions)
                self.cache = self.model.prefill(
                    rows, actions_of_rows, self.cache, self._newest(), validate=self.validate
                )
            self.prefills += 1
        self.tokens = torch.cat([self.tokens, step[:, None]], dim=1)
        if self.actions is not None and actions is not None:
            self.actions = GroupedActions.cat([self.actions, actions])
        self.past_steps = self.past_steps + 1
        self._drop_oldest()

    def fork(self, futures: int) -> "ContextWindow":
        """Windows of `futures` consecutive rollouts for each of these. They share the cache's past without a copy."""
        twin = copy(self)
        twin.cache, twin.blocks, twin.forked = self.cache.fork(futures), None, False
        twin.tokens = self.tokens.repeat_interleave(futures, dim=0)
        twin.actions = None if self.actions is None else self.actions.repeated(futures)
        twin.past_steps = self.past_steps.repeat_interleave(futures)
        self.forked = True
        return twin

    def with_sampler(self, sampler: Sampler) -> "ContextWindow":
        """An independent window of the same steps for another sampler. They share the cache's past without a copy,
        unless guidance begins or ends."""
        twin = self.fork(1) if sampler.guided == self.sampler.guided else copy(self)
        twin.sampler = sampler
        if sampler.guided != self.sampler.guided:
            twin.cache, twin.blocks, twin.forked = twin._prefilled(None), None, False
        return twin

    @property
    def num_bytes(self) -> int:
        """Size of the cache's buffers and of the tokens."""
        return self.cache.num_bytes + self.tokens.numel() * self.tokens.element_size()

    def _row_actions(self, actions: GroupedActions | None) -> GroupedActions | None:
        return actions.and_unknown() if self.sampler.guided and actions is not None else actions

    def _newest(self) -> Tensor:
        return self.sampler.model_rows(self.tokens[:, -1])

    def _drop_oldest(self) -> None:
        self.tokens = self.tokens[:, -self.kept_steps :]
        if self.actions is not None:
            self.actions = self.actions[-self.kept_steps :]

    # The buffers are ordinary tensors whenever they are made: compiled code distinguishes inference tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _prefilled(self, reused: TransformerCache | None) -> TransformerCache:
        """A cache of the tokens, in the buffers of `reused` if it is given."""
        rows = self.sampler.model_rows(self.tokens)
        missing = (self.tokens.shape[1] - self.past_steps).clamp(min=0)
        padding = self.sampler.model_rows(missing.to(self.model.device, non_blocking=True)) if missing.any() else None
        empty = self.model.init_cache(len(rows), padding) if reused is None else self.model.emptied(reused, padding)
        self.prefills += 1
        return self.model.prefill(rows, self._row_actions(self.actions), empty, validate=self.validate)
