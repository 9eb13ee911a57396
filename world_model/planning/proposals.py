"""Distributions over plans, from which candidates are drawn and which are fitted to the best of them.

Shapes: b rows planned for, m candidates of each, S latent steps, a choices of a discrete action or components of a
continuous one. A plan has one action a step: choices (S,), or vectors (S, a).
"""

from typing import Protocol

import torch
from torch import Tensor

from world_model.actions import ActionSpec

KEPT = 0.2  # of the old distribution in the new one, so that no choice is given up for good
MIN_STD = 0.05  # of continuous actions, as a fraction of the first one


class Proposal(Protocol):
    """A distribution over plans for each of b rows."""

    def sample(self, count: int) -> Tensor:
        """Plans (b, m, S[, a])."""
        ...

    def fit(self, plans: Tensor, weights: Tensor) -> None:
        """Fit the distribution to plans (b, m, S[, a]) with weights (b, m) that sum to 1."""
        ...

    @property
    def mode(self) -> Tensor:
        """The central plan of each row, (b, S[, a])."""
        ...


def make_proposal(
    spec: ActionSpec, rows: int, steps: int, generator: torch.Generator, mean: Tensor, std: Tensor
) -> Proposal:
    """The first distribution for actions of a kind: even over choices, or Gaussian with `mean` and `std` (a,)."""
    if spec.kind == "discrete":
        return ChoiceProposal(rows, steps, spec.size, generator)
    return GaussianProposal(rows, steps, mean, std, generator)


class ChoiceProposal:
    """Independent choices at each step."""

    def __init__(self, rows: int, steps: int, size: int, generator: torch.Generator) -> None:
        self.probabilities = torch.full((rows, steps, size), 1 / size)  # (b, S, a)
        self.generator = generator

    def sample(self, count: int) -> Tensor:
        """Each choice is drawn in the proportion of its probability, by equally spaced points in random order, so that
        a few candidates cover all choices."""
        b, steps, _ = self.probabilities.shape
        shift = torch.rand(b, steps, 1, generator=self.generator)
        points = (torch.arange(count) + shift) / count  # (b, S, m), sorted
        upper = self.probabilities.cumsum(-1)
        choices = torch.searchsorted(upper, points).clamp(max=upper.shape[-1] - 1)
        order = torch.rand(b, steps, count, generator=self.generator).argsort(-1)
        return choices.gather(-1, order).transpose(1, 2)

    def fit(self, plans: Tensor, weights: Tensor) -> None:
        chosen = torch.nn.functional.one_hot(plans, self.probabilities.shape[-1])  # (b, m, S, a)
        fitted = (chosen * weights[:, :, None, None]).sum(1)
        self.probabilities = KEPT * self.probabilities + (1 - KEPT) * fitted

    @property
    def mode(self) -> Tensor:
        return self.probabilities.argmax(-1)


class GaussianProposal:
    """Independent normal distributions of each component at each step."""

    def __init__(self, rows: int, steps: int, mean: Tensor, std: Tensor, generator: torch.Generator) -> None:
        self.first_std = std  # (a,)
        self.mean, self.std = mean.expand(rows, steps, -1), std.expand(rows, steps, -1)  # (b, S, a)
        self.generator = generator

    def sample(self, count: int) -> Tensor:
        b, steps, a = self.mean.shape
        noise = torch.randn(b, count, steps, a, generator=self.generator)
        return self.mean[:, None] + self.std[:, None] * noise

    def fit(self, plans: Tensor, weights: Tensor) -> None:
        weights = weights[:, :, None, None]
        mean = (weights * plans).sum(1)
        spread = (weights * (plans - mean[:, None]).square()).sum(1).sqrt()
        self.mean = mean
        self.std = torch.maximum(KEPT * self.std + (1 - KEPT) * spread, MIN_STD * self.first_std)

    @property
    def mode(self) -> Tensor:
        return self.mean
