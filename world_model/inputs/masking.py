"""Masked models: random masks for training, and the attention masks of whole and masked steps.

Shapes: b clips, T steps, H W rows and columns, n = H * W positions of a step.
"""

import torch
from torch import Tensor

EVALUATION_SEED = 0


def random_known(shape: tuple[int, int, int, int], device: torch.device, *, seeded: bool) -> tuple[Tensor, Tensor]:
    """For steps (b, T, H, W): which tokens are known (bool), and the weights of the masked tokens' losses.

    Each step has a random number of tokens masked, uniform in 1 .. n. The mean of the weighted losses estimates the
    cross entropy of drawing the step's tokens one by one in random order. `seeded` gives the same each time.
    """
    b, steps, height, width = shape
    n = height * width
    generator = torch.Generator().manual_seed(EVALUATION_SEED) if seeded else None
    where = "cpu" if seeded else device
    masked = torch.randint(1, n + 1, (b, steps, 1), generator=generator, device=where)
    rank = torch.rand(b, steps, n, generator=generator, device=where).argsort(-1).argsort(-1)
    hidden = (rank < masked).to(device)
    weights = hidden * (n / masked.to(device))
    return (~hidden).view(shape), weights.view(shape)


def training_layout(steps: int, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions and attention mask of T whole steps followed by the masked steps 1 .. T-1.

    Whole steps see themselves and those before them; masked ones see the whole steps before them, and themselves.
    """
    whole = torch.arange(steps, device=device).repeat_interleave(positions)
    step = torch.cat([whole, whole[positions:]])
    is_whole = torch.arange(len(step), device=device) < len(whole)
    places = torch.cat([torch.arange(len(whole), device=device), torch.arange(positions, len(whole), device=device)])
    queries, keys = step[:, None], step[None]
    sees_whole = torch.where(is_whole[:, None], keys <= queries, keys < queries) & is_whole[None]
    sees_masked = (keys == queries) & ~is_whole[:, None] & ~is_whole[None]
    return places, sees_whole | sees_masked


def step_mask(past: int, steps: int, positions: int, device: torch.device) -> Tensor:
    """The attention mask of `steps` whole steps after `past` positions: each sees all of its own step and before."""
    step = torch.arange(steps, device=device).repeat_interleave(positions)
    among = step[:, None] >= step[None]
    return torch.cat([among.new_ones(len(step), past), among], dim=1)
