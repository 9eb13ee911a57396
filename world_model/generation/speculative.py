"""Raster order in few calls: tokens are guessed and checked, many in one call.

With its random number given, each token is a function of those before it. A call reads guesses at several positions and
draws a token at each. Up to the first that differs from its guess, they are those that drawing one by one gives: so is
that one, and the drawn ones after it are the next guesses. The first guess is the step before, since most of a video
stays as it was. (Jacobi decoding: Song et al., "Accelerating Feedforward Computation via Parallel Nonlinear Equation
Solving", arXiv 2002.03629; Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free
Speculative Jacobi Decoding", arXiv 2410.01699.)

Shapes: b rollouts, n positions of a step.
"""

import torch
from torch import Tensor

from world_model.decoding import DecodeGroup
from world_model.generation.drawn import DrawnStep, blank_entropy, blank_hidden
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.prediction.causal import CausalPrediction
from world_model.transformer.cache import TransformerCache
from world_model.transformer.fast.prepack import Rows


class SpeculativeDrawing:
    """`GroupDrawing` in raster order, with the same tokens. All rollouts go on by what the slowest has right."""

    tokens_per_call: Rows | None = "varied"
    fills_cache = True

    def __init__(self, model: WorldModel, prediction: CausalPrediction, sampler: Sampler, draft_tokens: int) -> None:
        if model.tokens.kind != "discrete":
            raise ValueError(
                f"Decoding: draft_tokens is for codes, got {draft_tokens} for a model of patches; leave it out."
            )
        self.model, self.prediction, self.sampler, self.draft_tokens = model, prediction, sampler, draft_tokens
        self.noise_per_step = model.tokens.tokens_per_step * model.head.noise_per_token
        n = model.tokens.tokens_per_step
        self.sees = torch.ones(n, n, dtype=torch.bool, device=model.device).tril()
        self.positions = torch.arange(n, device=model.device)

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        n = before.shape[1]
        current, noise = before.clone(), noise.unflatten(1, (n, -1))
        kept = blank_hidden(self.model, before)
        entropies = blank_entropy(self.model, before) if entropy else None
        start, calls = 0, 0
        while start < n:
            end = min(start + self.draft_tokens, n)
            group = DecodeGroup(self.positions[start:end], end, self.sees[start:end, :end])
            hidden = self.prediction.step(self.sampler.model_rows(current), group, context, cache)
            drawn = self.model.draw(
                hidden,
                group.positions,
                context,
                noise[:, start:end],
                self.sampler,
                confidence=False,
                entropy=entropy,
            )
            if kept is not None:
                kept[:, start:end] = hidden[: len(kept)]
            if entropies is not None and drawn.entropy is not None:
                entropies[:, start:end] = drawn.entropy
            right = (drawn.tokens == current[:, start:end]).all(0).cumprod(0).sum()
            current[:, start:end] = drawn.tokens
            start = min(start + int(right) + 1, end)
            calls += 1
        return DrawnStep(tokens=current, hidden=kept, entropy=entropies, calls=calls)
