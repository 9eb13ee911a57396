"""What a world model says of real tokens: each factor's loss, and whether its likeliest value was right.

All that the measures know of how a model scores tokens, and of what tokens are made of, is in this file.

Shapes: b windows, T latent steps, H W rows and columns, k factors of a token, d values of a patch.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.architecture import TokenSpec
from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Of the tokens of steps 1 .. T-1, teacher-forced; a token's loss is the sum of its factors'.

    Losses are nats; of continuous tokens they are flow-matching squared errors, and nothing is `correct`.
    """

    losses: Tensor  # (b, T - 1, H, W, k)
    correct: Tensor | None  # (b, T - 1, H, W, k) bool


def factor_sizes(tokens: TokenSpec) -> tuple[int, ...] | None:
    """The number of values of each factor of a token, the least significant first; None for continuous tokens.

    Example:
        >>> factor_sizes(TokenSpec(codebook_size=16, height=2, width=2, temporal_factor=4))
        (16,)
    """
    return (tokens.codebook_size,)


def split_factors(codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Codes (...) -> factors (..., k), the least significant first, as `TokenizerAdapter.split` gives them.

    Example:
        >>> split_factors(torch.tensor([0, 5, 11]), (4, 3)).tolist()
        [[0, 0], [1, 1], [3, 2]]
    """
    factors, rest = [], codes.long()
    for size in sizes:
        factors.append(rest % size)
        rest = rest // size
    return torch.stack(factors, dim=-1)


def window_tokens(batch: TensorDict) -> Tensor:
    """The tokens of a store's windows: codes (b, T, H, W) int64."""
    return batch["codes"]


@torch.no_grad()
def score_tokens(model: WorldModel, tokens: Tensor, actions: GroupedActions | None) -> TokenScores:
    """Scores tokens (b, T, H, W) of the steps after a window's first, each given all that is before it."""
    targets = tokens[:, 1:].long()
    logits = model(tokens, actions)[:, 1:].float()
    losses = -logits.log_softmax(-1).gather(-1, targets[..., None])
    return TokenScores(losses=losses, correct=(logits.argmax(-1) == targets)[..., None])
