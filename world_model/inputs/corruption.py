"""What a world model is not told, or told wrong, in training: so that it goes on well from its own mistakes (context
corruption, which Valevski et al., "Diffusion Models Are Real-Time Game Engines", arXiv 2408.14837, found to stop
drift), and knows what it is like without actions (for guidance).

Shapes: b clips, T steps, H W rows and columns, p values of a patch, f frames a step.
"""

import torch
from torch import Tensor

from world_model.actions import GroupedActions


def corrupt_tokens(tokens: Tensor, most: float, codebook_size: int | None) -> tuple[Tensor, Tensor]:
    """Replace a random share of each clip's tokens, between 0 and `most`: codes by random ones, patches by noise.

    -> them, and the shares as parts of the most (b,), which the model is told.
    """
    part = torch.rand(tokens.shape[0], device=tokens.device)
    hit = torch.rand(tokens.shape[:4], device=tokens.device) < (most * part)[:, None, None, None]
    if codebook_size is not None:
        return torch.where(hit, torch.randint_like(tokens, codebook_size), tokens), part
    return torch.where(hit[..., None], torch.randn_like(tokens), tokens), part


def drop_actions(actions: GroupedActions, rate: float) -> GroupedActions:
    """Forget all actions of a random share of windows, and those of as large a share of the others' steps."""
    b, steps = actions.known.shape[:2]
    device = actions.known.device
    keep = (torch.rand(b, 1, device=device) >= rate) & (torch.rand(b, steps, device=device) >= rate)
    return GroupedActions(values=actions.values, known=actions.known & keep[..., None])
