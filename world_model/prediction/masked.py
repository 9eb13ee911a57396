"""Masked prediction: the tokens of a latent step in any order, many at once.

A model predicts each step from the whole steps before it and a random subset of its own tokens. In training a window is
passed twice, as it is and with tokens masked. The masked steps attend to themselves and to the whole steps before them,
as in block diffusion (Arriola et al., arXiv 2503.09573).

Shapes: b clips, T latent steps, H W rows and columns, n = H * W positions of a step, p values of a patch, d width.
"""

import torch
from einops import rearrange
from torch import Tensor

from world_model.architecture import TokenSpec
from world_model.inputs.masking import random_known, step_mask, training_layout
from world_model.inputs.positions import MaskedInputs
from world_model.prediction.base import StepContext, WindowInputs
from world_model.transformer.cache import Placement, TransformerCache
from world_model.transformer.transformer import Transformer


class MaskedPrediction:
    """Masked prediction with the modules of a world model."""

    def __init__(self, tokens: TokenSpec, inputs: MaskedInputs, transformer: Transformer) -> None:
        self.tokens, self.inputs, self.transformer = tokens, inputs, transformer

    def hidden(self, window: WindowInputs, *, known: Tensor | None = None) -> Tensor:
        """Hidden states (b, T - 1, H, W, d) of the steps after the first.

        Each position sees the whole steps before its own, and the tokens of its own step that `known`
        (b, T - 1, H, W) bool marks: none by default.
        """
        masked, conditioning = window.tokens[:, 1:], window.conditioning
        if known is None:
            known = torch.zeros(masked.shape[:4], dtype=torch.bool, device=masked.device)
        whole_steps = conditioning + self.inputs(window.tokens, None, window.tables)
        masked_steps = conditioning[:, 1:] + self.inputs(masked, known, window.tables)
        x = torch.cat([whole_steps, masked_steps], dim=1).flatten(1, 2)
        n = self.tokens.tokens_per_step
        positions, mask = training_layout(window.tokens.shape[1], n, x.device)
        hidden = self.transformer(x, positions, mask, masked.shape[1] * n)
        return rearrange(hidden, "b (T H W) d -> b T H W d", H=self.tokens.height, W=self.tokens.width)

    def scored(self, window: WindowInputs, *, diagonal_offset: int | None, seeded: bool) -> tuple[Tensor, Tensor]:
        """Hidden states (b, T - 1, H, W, d) with a random subset of each step known, and the weights of the losses.

        `seeded` gives the same subset each time.
        """
        if diagonal_offset is not None:
            raise ValueError("WorldModel: diagonal_offset is for causal models; a masked one has no order.")
        b, steps, height, width = window.tokens.shape[:4]
        known, weights = random_known((b, steps - 1, height, width), window.tokens.device, seeded=seeded)
        return self.hidden(window, known=known), weights

    def prefill(self, window: WindowInputs, cache: TransformerCache) -> TransformerCache:
        """Append whole steps to the cache."""
        x = window.conditioning + self.inputs(window.tokens, None, window.tables)
        steps, n = window.tokens.shape[1], self.tokens.tokens_per_step
        end = cache.length + steps * n
        mask = step_mask(cache.length, steps, n, x.device)
        at = Placement(positions=slice(cache.length, end), end=end, mask=mask)
        return self.transformer.prefill(x.flatten(1, 2), cache, at)

    def predict_masked(self, current: Tensor, known: Tensor, context: StepContext, cache: TransformerCache) -> Tensor:
        """Hidden states (b, n, d) of the next step, given those of its tokens `current` (b, n[, p]) that are `known`
        (b, n) bool. Once all are known, `prefill` appends the step to the cache."""
        end = cache.length + self.tokens.tokens_per_step
        at = Placement(positions=slice(cache.length, end), end=end)
        return self._predict(current, known, context, cache, at)

    def predict_masked_at(
        self, current: Tensor, known: Tensor, base: Tensor, context: StepContext, cache: TransformerCache
    ) -> Tensor:
        """`predict_masked` after `base` (1,) tokens in the cache. Attention is over the cache's whole capacity, masked,
        so that one compiled call serves every length. Keys and values of the step are written into the cache: those of
        the whole step, once all are known."""
        positions = base + torch.arange(self.tokens.tokens_per_step, device=base.device)
        mask = (torch.arange(cache.capacity, device=base.device) <= positions[-1:])[None]
        at = Placement(positions=positions, end=cache.capacity, mask=mask)
        return self._predict(current, known, context, cache, at)

    def _predict(
        self, current: Tensor, known: Tensor, context: StepContext, cache: TransformerCache, at: Placement
    ) -> Tensor:
        grid = (self.tokens.height, self.tokens.width)
        own = self.inputs(current.unflatten(1, grid)[:, None], known.unflatten(1, grid)[:, None], context.tables)
        return self.transformer.step(context.conditioning + own.squeeze(1), cache, at, context.blocks)[0]
