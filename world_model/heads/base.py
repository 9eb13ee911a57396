"""The results of both heads: scores of true tokens, and drawn tokens."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How well tokens were predicted.

    For codes, `losses` are cross entropies in nats, one per factor, whose sum is the token's. For patches they are the
    squared errors of flow matching, averaged over the patch. Means weigh tokens by `weights`. Those of a masked model
    are zero where a token was known and average 1, so that the mean estimates the cross entropy of drawing a step's
    tokens one by one in random order. `correct` is True where the likeliest value is the true one; it is None for
    patches, and in training.
    """

    losses: Tensor  # (b, T - 1, H, W, k)
    correct: Tensor | None  # (b, T - 1, H, W, k) bool
    weights: Tensor  # (b, T - 1, H, W)

    @property
    def token_losses(self) -> Tensor:
        """Losses summed over the factors, (b, T - 1, H, W)."""
        return self.losses.sum(-1)

    @property
    def token_correct(self) -> Tensor | None:
        """Where all factors are correct, (b, T - 1, H, W) bool."""
        return None if self.correct is None else self.correct.all(-1)


@dataclass(frozen=True, kw_only=True)
class DrawnTokens:
    """Tokens that a head drew."""

    tokens: Tensor  # (b, m) codes or (b, m, p) patches
    confidence: Tensor | None  # (b, m) log probabilities of the drawn codes; None for patches, or if not needed
    entropy: Tensor | None = None  # (b, m) of the codes' distributions, in nats; None for patches, or if not needed
