"""Training with corrupted tokens, with the model's own draws, and with dropped actions.

Corruption makes a model robust to its own mistakes: Valevski et al., "Diffusion Models Are Real-Time Game Engines"
(arXiv 2408.14837), found that it stops drift. Draws of the model
itself are likelier mistakes; they are drawn for all positions at once, as in parallel scheduled sampling (Duckworth et
al., arXiv 1906.04331). Dropped actions make classifier-free guidance possible.

Shapes: b clips, T steps, H W rows and columns, p values of a patch, f frames a step.
"""

import torch
from torch import Tensor

from world_model.actions import GroupedActions


def corrupt_tokens(tokens: Tensor, max_fraction: float, codebook_size: int | None) -> tuple[Tensor, Tensor]:
    """Replace a random fraction of each clip's tokens, up to `max_fraction`: codes by random ones, patches by noise.

    -> the tokens, and the fractions (b,) relative to `max_fraction`, which the model is conditioned on.
    """
    replaced, level = _random_places(tokens, max_fraction)
    if codebook_size is not None:
        return torch.where(replaced, torch.randint_like(tokens, codebook_size), tokens), level
    return torch.where(replaced[..., None], torch.randn_like(tokens), tokens), level


def mix_tokens(tokens: Tensor, others: Tensor, max_fraction: float) -> Tensor:
    """Replace a random fraction of each clip's tokens, up to `max_fraction`, by `others` in the same places."""
    replaced, _ = _random_places(tokens, max_fraction)
    return torch.where(replaced if tokens.ndim == 4 else replaced[..., None], others, tokens)


def drop_actions(actions: GroupedActions, rate: float) -> GroupedActions:
    """Mark actions as unknown: in a random fraction `rate` of windows, and of the steps in the other windows."""
    b, steps = actions.known.shape[:2]
    device = actions.known.device
    keep = (torch.rand(b, 1, device=device) >= rate) & (torch.rand(b, steps, device=device) >= rate)
    return GroupedActions(values=actions.values, known=actions.known & keep[..., None])


def _random_places(tokens: Tensor, max_fraction: float) -> tuple[Tensor, Tensor]:
    """Places (b, T, H, W) bool, a random fraction of each clip; -> and the fractions relative to `max_fraction`."""
    level = torch.rand(tokens.shape[0], device=tokens.device)
    return torch.rand(tokens.shape[:4], device=tokens.device) < (max_fraction * level)[:, None, None, None], level
