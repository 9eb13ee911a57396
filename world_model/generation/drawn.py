"""What a drawing of a latent step gives: its tokens, and the hidden states that they were drawn from.

Shapes: b rollouts, n positions of a step, p values of a patch, d width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class DrawnStep:
    """A drawn latent step."""

    tokens: Tensor  # (b, n[, p])
    hidden: Tensor | None  # (b, n, d), with guidance those that know the actions; None if no head reads them
    entropy: Tensor | None  # (b, n) float32, nats, of the codes' distributions; None for patches, or if not asked for
    calls: int  # of the transformer, that drew it


def blank_hidden(model: WorldModel, step: Tensor) -> Tensor | None:
    """Room for the hidden states of a step (b, n[, p]) if the model's head of outcomes or states will read them."""
    if model.outcomes is None and model.state_head is None:
        return None
    return step.new_zeros(*step.shape[:2], model.config.transformer.width, dtype=model.dtype)


def blank_entropy(model: WorldModel, step: Tensor) -> Tensor | None:
    """Room for the entropies of a step's codes (b, n); None for patches."""
    return None if model.tokens.kind == "continuous" else step.new_zeros(step.shape, dtype=torch.float32)
