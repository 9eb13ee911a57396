"""Distributions over plans, from which candidates are drawn and which are fitted to the best of them.

Shapes: b rows planned for, m candidates of each, S latent steps, a choices of a discrete action or components of a
continuous one. A plan has one action a step: choices (S,), or vectors (S, a), in which choices are whole numbers.
"""

from collections.abc import Sequence
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
    """The first distribution for actions of a kind: even over choices, Gaussian with `mean` and `std` (a,) of
    continuous components."""
    if spec.kind == "discrete":
        return ChoiceProposal(rows, steps, spec.size, generator)
    if spec.kind == "mixed":
        return MixedProposal(spec.choices, rows, steps, mean, std, generator)
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


class MixedProposal:
    """A distribution of its own for each choice of an action of several parts, and one for all continuous components.

    choices: (a,), the number of choices of each component, 0 for a continuous one.
    """

    def __init__(
        self,
        choices: Sequence[int],
        rows: int,
        steps: int,
        mean: Tensor,
        std: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.chosen = [(i, ChoiceProposal(rows, steps, count, generator)) for i, count in enumerate(choices) if count]
        self.measured = torch.tensor([i for i, count in enumerate(choices) if not count], dtype=torch.int64)
        self.gaussian = GaussianProposal(rows, steps, mean[self.measured], std[self.measured], generator)
        self.shape = (rows, steps, len(choices))

    def sample(self, count: int) -> Tensor:
        rows, steps, size = self.shape
        plans = torch.empty(rows, count, steps, size)
        for i, choice in self.chosen:
            plans[..., i] = choice.sample(count).float()
        plans[..., self.measured] = self.gaussian.sample(count)
        return plans

    def fit(self, plans: Tensor, weights: Tensor) -> None:
        for i, choice in self.chosen:
            choice.fit(plans[..., i].long(), weights)
        self.gaussian.fit(plans[..., self.measured], weights)

    @property
    def mode(self) -> Tensor:
        central = torch.empty(self.shape)
        for i, choice in self.chosen:
            central[..., i] = choice.mode.float()
        central[..., self.measured] = self.gaussian.mode
        return central
