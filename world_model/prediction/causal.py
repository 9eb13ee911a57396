"""Causal prediction: each token from those before it, in raster or in diagonal order.

Shapes: b clips, T latent steps, H W rows and columns, n = H * W positions of a step, m some of them, p values of a
patch, d width.
"""

import torch
from einops import rearrange
from torch import Tensor

from world_model.architecture import WorldModelConfig
from world_model.decoding import DecodeGroup, diagonal_mask, sliding_mask
from world_model.inputs.embedding import TokenEmbedding
from world_model.inputs.positions import CausalInputs, at_positions, window_rotation
from world_model.prediction.base import StepContext, WindowInputs
from world_model.transformer.cache import Placement, TransformerCache
from world_model.transformer.transformer import Transformer


class CausalPrediction:
    """Causal prediction with the modules of a world model."""

    def __init__(
        self, config: WorldModelConfig, inputs: CausalInputs, narrow: TokenEmbedding, transformer: Transformer
    ) -> None:
        assert config.tokens is not None
        self.config, self.tokens = config, config.tokens
        self.inputs, self.narrow, self.transformer = inputs, narrow, transformer

    def hidden(self, window: WindowInputs, *, diagonal_offset: int | None = None, since: int = 0) -> Tensor:
        """Hidden states (b, T - since, H, W, d) of the steps from `since` on.

        Each position sees the tokens before it in raster order; with `diagonal_offset`, only those that
        diagonal order has already drawn. It sees no more than `max_steps - 1` steps before its own.
        """
        steps, n = window.tokens.shape[1], self.tokens.tokens_per_step
        if not 0 <= since <= steps:
            raise ValueError(f"WorldModel: since must be 0 to {steps}, the window's steps, got {since}.")
        mask, rotation, device = None, None, window.tokens.device
        if diagonal_offset is not None:
            mask = diagonal_mask(steps, self.tokens.height, self.tokens.width, diagonal_offset, device)
        if steps > self.config.max_steps:
            recent = sliding_mask(steps, self.config.max_steps, n, device)
            mask = recent if mask is None else recent & mask
            rotation = window_rotation(self.config, steps).to(self.transformer.rotary_cos)
        hidden = self.transformer(self._embedded(window), mask=mask, needed=(steps - since) * n, rotation=rotation)
        return rearrange(hidden, "b (T H W) d -> b T H W d", H=self.tokens.height, W=self.tokens.width)

    def scored(self, window: WindowInputs, *, diagonal_offset: int | None, seeded: bool) -> tuple[Tensor, Tensor]:
        """Hidden states (b, T - 1, H, W, d) of the steps after the first, and the weights of their tokens' losses."""
        hidden = self.hidden(window, diagonal_offset=diagonal_offset, since=1)
        return hidden, torch.ones(hidden.shape[:4], device=hidden.device)

    def prefill(self, window: WindowInputs, cache: TransformerCache) -> TransformerCache:
        """Append whole steps to the cache."""
        return self.transformer.prefill(self._embedded(window), cache)

    def step(self, current: Tensor, group: DecodeGroup, context: StepContext, cache: TransformerCache) -> Tensor:
        """Hidden states (b, m, d) of a group of the next step's positions.

        `current` (b, n[, p]) holds the tokens drawn so far, including all that the group sees. Keys and values are
        written into the cache, but its length stays; call `advanced` after the whole step.
        """
        base = cache.length
        if group.sees is None:
            at = Placement(positions=slice(base + group.end - 1, base + group.end), end=base + group.end)
        else:
            past = group.sees.new_ones(len(group.positions), base)
            mask = torch.cat([past, group.sees], dim=1)
            at = Placement(positions=base + group.positions, end=base + group.end, mask=mask)
        return self._step(current, group.index, context, cache, at)

    def step_at(
        self,
        current: Tensor,
        positions: Tensor,
        sees: Tensor,
        base: Tensor,
        context: StepContext,
        cache: TransformerCache,
    ) -> Tensor:
        """`step` for `positions` (m,) that see those of the step that `sees` (m, n) marks, after `base` (1,) tokens in
        the cache.

        All are tensors, and attention is over the cache's whole capacity, masked, so that one compiled call serves
        every group of m positions.
        """
        place = torch.arange(cache.capacity, device=positions.device) - base  # of each key in its step
        n = sees.shape[1]
        mask = (place < 0) | ((place < n) & sees.index_select(1, place.clamp(0, n - 1)))
        at = Placement(positions=base + positions, end=cache.capacity, mask=mask)
        return self._step(current, positions, context, cache, at)

    def _step(
        self, current: Tensor, index: Tensor | int, context: StepContext, cache: TransformerCache, at: Placement
    ) -> Tensor:
        x = self.inputs.at(current, index, self.narrow, context.tables)
        x = at_positions(context.conditioning, index) + x
        return self.transformer.step(x, cache, at, context.blocks)[0]

    def _embedded(self, window: WindowInputs) -> Tensor:
        """(b, T * n, d)."""
        return (window.conditioning + self.inputs(window.tokens, self.narrow, window.tables)).flatten(1, 2)
