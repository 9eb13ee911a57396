"""What both heads give: the scores of true tokens, and tokens drawn."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How well tokens were predicted.

    Of codes `losses` are cross entropies in nats, one for each factor, whose sum is the token's; of patches, flow
    matching's squared errors, a mean over the patch. Means weigh tokens by `weights`: those of a masked model are
    zero where a token was told, and average 1, so that the mean estimates the cross entropy of filling in a step's
    tokens one by one in random order.
    """

    losses: Tensor  # (b, T - 1, H, W, k)
    correct: (
        Tensor | None
    )  # (b, T - 1, H, W, k) bool: the likeliest value is the true one; None for patches, in training
    weights: Tensor  # (b, T - 1, H, W)

    @property
    def token_losses(self) -> Tensor:
        """Over all factors, (b, T - 1, H, W)."""
        return self.losses.sum(-1)

    @property
    def token_correct(self) -> Tensor | None:
        """All factors right, (b, T - 1, H, W) bool."""
        return None if self.correct is None else self.correct.all(-1)


@dataclass(frozen=True, kw_only=True)
class DrawnTokens:
    """Tokens that a head drew."""

    tokens: Tensor  # (b, m) codes or (b, m, p) patches
    confidence: Tensor | None  # (b, m) log probabilities of the codes drawn; None for patches, or if not needed
