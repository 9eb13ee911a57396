"""Generating latent steps one after another, each token by token, from a past that a cache holds.

Shapes: b rollouts, T latent steps, H W rows and columns.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.cache import TransformerCache
from world_model.model import WorldModel
from world_model.sampler import RolloutNoise, Sampler


class StepGenerator:
    """Rollouts in tokens, from the whole steps `codes` (b, T, H, W) on; the state is its own, not the
    model's.

    A model sees `max_steps` latent steps. When they are full, the oldest quarter is dropped (one step at
    least) and the rest read in anew, as a window of its own; so are all but the newest steps of a longer
    past.
    """

    def __init__(
        self,
        model: WorldModel,
        codes: Tensor,
        actions: GroupedActions | None,
        sampler: Sampler,
        indices: Sequence[int] | None = None,
    ) -> None:
        if model.config.max_steps < 2:
            raise ValueError(
                "StepGenerator: the model's max_steps must be at least 2 to continue a past, got 1; train another."
            )
        if codes.shape[1] < 1:
            raise ValueError("StepGenerator: the past must have at least 1 latent step, got 0.")
        batch = codes.shape[0]
        if indices is not None and len(indices) != batch:
            raise ValueError(f"StepGenerator: indices must name each of the {batch} rollouts, got {len(indices)}.")
        self.model = model
        self.sampler = sampler
        self.noise = RolloutNoise(sampler.seed, range(batch) if indices is None else indices)
        self._keep = model.config.max_steps - max(1, model.config.max_steps // 4)
        self._codes = codes
        self._actions = actions
        self._cache: TransformerCache = self._read(model.init_cache(batch))

    def step(self, actions: GroupedActions | None) -> Tensor:
        """Draw the next latent step (b, H, W) under its actions, one step of them."""
        with torch.inference_mode():
            codes = self._draw(actions)
        codes = codes.clone()  # an ordinary tensor, that a caller may use for training
        newest = slice(-self._keep, None)
        self._codes = torch.cat([self._codes, codes[:, None]], dim=1)[:, newest]
        if self._actions is not None and actions is not None:
            self._actions = GroupedActions.cat([self._actions, actions])[newest]
        return codes

    def fork(self) -> "StepGenerator":
        """A copy that goes on independently, drawing the same random numbers."""
        twin = copy(self)
        twin.noise = self.noise.fork()
        twin._cache = self._cache.fork()
        return twin

    def _draw(self, actions: GroupedActions | None) -> Tensor:
        model, tokens = self.model, self.model.tokens
        if self._cache.length + tokens.tokens_per_step > self._cache.capacity:
            self._cache = self._read(self._cache.rewound())
        cache, previous = self._cache, self._codes[:, -1]
        context = model.step_context(previous, actions, cache)
        uniforms = self.noise.uniforms(tokens.tokens_per_step).to(model.device, torch.float32)
        token, drawn = previous[:, -1, -1], []
        for slot in range(tokens.tokens_per_step):
            logits, cache = model.step(token, context, cache)
            token = self.sampler.draw(logits, uniforms[:, slot])
            drawn.append(token)
        self._cache = cache
        return torch.stack(drawn, dim=1).view(-1, tokens.height, tokens.width)

    @torch.no_grad()
    def _read(self, cache: TransformerCache) -> TransformerCache:
        """Fill an empty cache with the newest of the past steps."""
        self._codes = self._codes[:, -self._keep :]
        if self._actions is not None:
            self._actions = self._actions[slice(-self._keep, None)]
        return self.model.prefill(self._codes, self._actions, cache)
