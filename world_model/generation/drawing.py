"""Drawing the tokens of a latent step, in the order that a rollout's `Decoding` says.

Shapes: b rollouts, n positions of a step, p values of a patch, u uniform numbers of a step.
"""

from typing import Protocol

import torch
from torch import Tensor

from world_model.decoding import DecodeGroup, Decoding, diagonal_groups, known_after, raster_groups
from world_model.generation.choosing import choice_confidence
from world_model.generation.compiled import CompiledGroupDrawing, CompiledMaskedDrawing
from world_model.generation.drawn import DrawnStep, blank_entropy, blank_hidden
from world_model.generation.speculative import SpeculativeDrawing
from world_model.heads.sampler import Sampler
from world_model.inputs.positions import at_positions
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.prediction.causal import CausalPrediction
from world_model.prediction.masked import MaskedPrediction
from world_model.transformer.cache import TransformerCache
from world_model.transformer.fast.prepack import Rows


class Drawing(Protocol):
    """A way to draw a latent step."""

    noise_per_step: int  # uniform numbers u
    tokens_per_call: Rows | None  # of each rollout, for which weights are prepacked; None: it uses no prepacked ones
    fills_cache: bool  # whether drawing writes the keys and values of the drawn tokens

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        """Tokens after the step `before` (b, n[, p]), by uniform numbers (b, u). The cache's length stays.

        `entropy`: also the entropies of the codes' distributions.
        """
        ...


def make_drawing(model: WorldModel, sampler: Sampler, decoding: Decoding) -> Drawing:
    """The drawing for a model; a ValueError for an order that the model was not trained for."""
    order = decoding.order_for(model.config.prediction)
    prediction, tokens = model.prediction, model.tokens
    if isinstance(prediction, MaskedPrediction):
        steps = decoding.steps or 8
        temperature = 1.0 if decoding.choice_temperature is None else decoding.choice_temperature
        masked = CompiledMaskedDrawing if decoding.compiled else MaskedDrawing
        return masked(model, prediction, sampler, steps=steps, temperature=temperature)
    if decoding.draft_tokens is not None:
        return SpeculativeDrawing(model, prediction, sampler, decoding.draft_tokens)
    if order == "raster":
        groups = raster_groups(tokens.height, tokens.width, model.device)
    else:
        groups = diagonal_groups(tokens.height, tokens.width, decoding.diagonal_offset or 1, model.device)
    causal = CompiledGroupDrawing if decoding.compiled else GroupDrawing
    return causal(model, prediction, sampler, groups)


class GroupDrawing:
    """Raster and diagonal order: one call for each group of positions."""

    fills_cache = True

    def __init__(
        self, model: WorldModel, prediction: CausalPrediction, sampler: Sampler, groups: list[DecodeGroup]
    ) -> None:
        self.model, self.prediction, self.sampler, self.groups = model, prediction, sampler, groups
        self.noise_per_step = model.tokens.tokens_per_step * model.head.noise_per_token
        self.tokens_per_call: Rows | None = 1 if len(groups) == model.tokens.tokens_per_step else "varied"

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        current, noise = torch.zeros_like(before), noise.unflatten(1, (before.shape[1], -1))
        kept = blank_hidden(self.model, before)
        entropies = blank_entropy(self.model, before) if entropy else None
        for group in self.groups:
            index = group.index
            hidden = self.prediction.step(self.sampler.model_rows(current), group, context, cache)
            if kept is not None:
                kept.index_copy_(1, group.positions, hidden[: len(kept)])
            uniforms = at_positions(noise, index)
            drawn = self.model.draw(hidden, index, context, uniforms, self.sampler, confidence=False, entropy=entropy)
            if isinstance(index, int):
                current.narrow(1, index, 1).copy_(drawn.tokens)
            else:
                current.index_copy_(1, index, drawn.tokens)
            if entropies is not None and drawn.entropy is not None:
                entropies.index_copy_(1, group.positions, drawn.entropy)
        return DrawnStep(tokens=current, hidden=kept, entropy=entropies, calls=len(self.groups))


class MaskedDrawing:
    """Masked order: every call draws all positions, and those drawn with the highest confidence are kept."""

    tokens_per_call: Rows | None = "varied"
    fills_cache = False

    def __init__(
        self, model: WorldModel, prediction: MaskedPrediction, sampler: Sampler, *, steps: int, temperature: float
    ) -> None:
        self.model, self.prediction, self.sampler, self.temperature = model, prediction, sampler, temperature
        self.known_counts = known_after(steps, model.tokens.tokens_per_step)
        self.calls = len(self.known_counts)
        self.noise_per_step = self.calls * model.tokens.tokens_per_step * (model.head.noise_per_token + 1)

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        current, noise = torch.zeros_like(before), noise.unflatten(1, (self.calls, before.shape[1], -1))
        rows = self.sampler.model_rows
        known = torch.zeros(current.shape[:2], dtype=torch.bool, device=current.device)
        entropies = blank_entropy(self.model, before) if entropy else None
        for i, count in enumerate(self.known_counts):
            hidden = self.prediction.predict_masked(rows(current), rows(known), context, cache)
            drawn = self.model.draw(hidden, None, context, noise[:, i, :, :-1], self.sampler, entropy=entropy)
            confidence = choice_confidence(drawn, noise[:, i, :, -1], self.temperature * (1 - (i + 1) / self.calls))
            kept = confidence.masked_fill(known, float("inf")).topk(count, dim=1).indices
            now_known = known.scatter(1, kept, True)
            new = now_known & ~known
            current = torch.where(new[..., None] if current.ndim == 3 else new, drawn.tokens, current)
            if entropies is not None and drawn.entropy is not None:
                entropies = torch.where(new, drawn.entropy, entropies)
            known = now_known
        return DrawnStep(tokens=current, hidden=hidden[: len(before)], entropy=entropies, calls=self.calls)
