"""Controllability: does a world model follow its actions?

Delta PSNR (Genie, arXiv 2402.15391) is the PSNR of a rollout under the real actions minus the PSNR of a rollout under
other actions, both against the real future. The other actions are those of another prompt, which have the distribution
of the recording whatever its policy and may be discrete or continuous, or random ones if the recording's policy was
random. Numbers of the two kinds must not be compared with each other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from world_model.recording.policy import CoveringPolicy

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class ActionEffect:
    """Delta PSNR in dB and the 95% bootstrap interval of its mean over prompts."""

    delta_psnr: float
    low: float
    high: float


def others_actions(actions: Tensor, prompt_frames: int) -> Tensor:
    """Actions (b, t[, a]) with the future of each row replaced by that of another row.

    Raises:
        ValueError: there is only one row.

    Example:
        >>> others_actions(torch.tensor([[0, 1, 1], [0, 2, 2]]), prompt_frames=2).tolist()
        [[0, 1, 2], [0, 2, 1]]
    """
    count = len(actions)
    if count < 2:
        raise ValueError(f"others_actions: there must be at least 2 prompts, got {count}; use more.")
    swapped = actions.clone()
    swapped[:, prompt_frames:] = actions.roll(count // 2, 0)[:, prompt_frames:]
    return swapped


def random_actions(actions: Tensor, prompt_frames: int, size: int, hold: tuple[int, int], seed: int = 0) -> Tensor:
    """Discrete actions (b, t) with the future of each row replaced by the actions of a `CoveringPolicy`.

    Example:
        >>> random_actions(torch.zeros(1, 5, dtype=torch.int64), 3, size=1, hold=(2, 4)).tolist()
        [[0, 0, 0, 0, 0]]
    """
    rng = np.random.default_rng(seed)
    drawn = actions.clone()
    for row in drawn:
        policy = CoveringPolicy(size, hold, rng)
        row[prompt_frames:] = torch.tensor([policy() for _ in range(prompt_frames, len(row))])
    return drawn


def action_effect(psnr: Tensor, others_psnr: Tensor, seed: int = 0) -> ActionEffect:
    """The effect of actions, from the PSNR (b,) of each prompt's rollout under its own and under other actions."""
    delta = (psnr - others_psnr).cpu().numpy()
    low, high = bootstrap_interval(delta, seed=seed)
    return ActionEffect(delta_psnr=float(delta.mean()), low=low, high=high)


def bootstrap_interval(values: np.ndarray, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (n,).

    Example:
        >>> low, high = bootstrap_interval(np.arange(100.0))
        >>> low < 49.5 < high
        True
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
