"""A latent step as one vector, for heads that predict something of the whole step.

Shapes: n positions of a step, d width of the model, e of the tokens' narrow embeddings, q queries, w width of the head.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES = 4  # of the attention over a step's positions


class StepPooling(nn.Module):
    """Attends from a few learned queries to a step's positions.

    It reads a step as it was predicted (the hidden states of its tokens), its tokens, and those of the step before:
    much shows in what changed.
    """

    def __init__(self, width: int, narrow_width: int, head_width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width + 2 * narrow_width, head_width)
        self.score = nn.Linear(head_width, QUERIES, bias=False)
        self.join = nn.Linear(QUERIES * head_width, head_width)

    def pooled(self, hidden: Tensor, own: Tensor, before: Tensor) -> Tensor:
        """(..., w) of steps, from (..., n, d) hidden states and the embeddings (..., n, e) of both steps' tokens."""
        x = F.silu(self.mix(torch.cat([hidden, own, before], dim=-1)))
        attention = self.score(x).softmax(-2)
        pooled = rearrange(attention.transpose(-1, -2) @ x, "... q w -> ... (q w)")
        return F.silu(self.join(pooled))
