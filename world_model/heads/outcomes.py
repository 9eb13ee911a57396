"""The head of outcomes: the reward of each frame of a latent step, and whether the episode ends with the step.

Outcomes are read from a step as it was predicted (the hidden states of its tokens), from its tokens, and from those of
the step before: a goal shows in what changed. Rewards are a distribution over values that are spaced evenly after
`symlog`, trained on two-hot targets, so that their mean needs no scale (Hafner et al., DreamerV3, arXiv 2301.04104).

Shapes: b clips, T latent steps, n positions of a step, f frames of a step, d width of the model, e of the tokens'
narrow embeddings, w width of the head, v values.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.store.shards import UNKNOWN_END
from world_model.architecture import OutcomeConfig
from world_model.heads.pooling import StepPooling

VALUES = 101


@dataclass(frozen=True, kw_only=True)
class OutcomeTargets:
    """What is known of the outcomes of a window."""

    rewards: Tensor | None  # (b, T, f) float, NaN where unknown
    terminated: Tensor | None  # (b, T) uint8: 1 the episode ends with the step, 0 it goes on, 2 unknown

    def __getitem__(self, steps: slice) -> "OutcomeTargets":
        """The outcomes of the given latent steps."""
        return OutcomeTargets(
            rewards=None if self.rewards is None else self.rewards[:, steps],
            terminated=None if self.terminated is None else self.terminated[:, steps],
        )


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Predicted outcomes of latent steps (..., steps) or of a single one (...)."""

    rewards: Tensor | None  # (..., f) float32: expected reward of each frame; None without that head
    end_probability: Tensor | None  # (...) float32; None without that head

    @property
    def terminated(self) -> Tensor | None:
        """Whether the episode ends with the step, more likely than not, (...) bool."""
        return None if self.end_probability is None else self.end_probability > 0.5


@dataclass(frozen=True, kw_only=True)
class OutcomeLosses:
    """Losses of outcomes, zero where they are unknown."""

    rewards: Tensor | None  # (b, T) nats a frame: mean over the step's frames
    ends: Tensor | None  # (b, T) nats


class OutcomeHead(StepPooling):
    """Predicts the rewards of a step's frames, and its end."""

    def __init__(self, config: OutcomeConfig, width: int, narrow_width: int, temporal_factor: int) -> None:
        super().__init__(width, narrow_width, config.width)
        self.temporal_factor = temporal_factor
        self.rewards = nn.Linear(config.width, temporal_factor * VALUES) if config.rewards else None
        self.ends = nn.Linear(config.width, 1) if config.ends else None
        for layer in (self.rewards, self.ends):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.values: Tensor
        self.register_buffer("values", reward_values(config.largest_reward), persistent=False)

    def forward(self, hidden: Tensor, own: Tensor, before: Tensor) -> Outcomes:
        """Outcomes of steps, from (..., n, d) hidden states and the embeddings (..., n, e) of both steps' tokens."""
        logits, end = self._logits(hidden, own, before)
        rewards = None if logits is None else logits.float().softmax(-1) @ self.values.float()
        return Outcomes(rewards=rewards, end_probability=None if end is None else end.float().sigmoid())

    def losses(self, hidden: Tensor, own: Tensor, before: Tensor, targets: OutcomeTargets) -> OutcomeLosses:
        """Cross entropies of known outcomes, for hidden (b, T, n, d) and embeddings (b, T, n, e)."""
        logits, end = self._logits(hidden, own, before)
        rewards = ends = None
        if logits is not None and targets.rewards is not None:
            known = ~targets.rewards.isnan()
            target = two_hot(torch.where(known, targets.rewards, 0.0), self.values.float())
            each = -(target * logits.float().log_softmax(-1)).sum(-1)
            rewards = torch.where(known, each, 0.0).mean(-1)
        if end is not None and targets.terminated is not None:
            known = targets.terminated != UNKNOWN_END
            each = F.binary_cross_entropy_with_logits(end.float(), (targets.terminated == 1).float(), reduction="none")
            ends = torch.where(known, each, 0.0)
        return OutcomeLosses(rewards=rewards, ends=ends)

    def _logits(self, hidden: Tensor, own: Tensor, before: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Logits of the rewards' values (..., f, v) and of the end (...)."""
        x = self.pooled(hidden, own, before)
        rewards = None if self.rewards is None else self.rewards(x).unflatten(-1, (self.temporal_factor, VALUES))
        return rewards, None if self.ends is None else self.ends(x)[..., 0]


def reward_values(largest: float) -> Tensor:
    """Rewards (v,) from `-largest` to `largest`, evenly spaced after symlog(x) = sign(x) log(1 + |x|); 0 is one.

    Example:
        >>> values = reward_values(100.0)
        >>> len(values), values[50].item(), round(values[-1].item(), 3)
        (101, 0.0, 100.0)
    """
    half = VALUES // 2
    spaced = torch.arange(-half, half + 1, dtype=torch.float64) / half * math.log1p(largest)
    return (spaced.sign() * spaced.abs().expm1()).float()


def two_hot(x: Tensor, values: Tensor) -> Tensor:
    """Weights (..., v) on the two nearest of `values` (v,), ascending, whose mean is x (...), which must be within.

    Example:
        >>> two_hot(torch.tensor([1.5, 0.0]), torch.tensor([-1.0, 0.0, 2.0])).tolist()
        [[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]]
    """
    above = torch.searchsorted(values, x.contiguous()).clamp(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    share = ((x - low) / (high - low)).clamp(0, 1)
    weights = torch.zeros(*x.shape, len(values), device=x.device)
    weights.scatter_(-1, (above - 1)[..., None], (1 - share)[..., None])
    return weights.scatter_(-1, above[..., None], share[..., None])
