"""The previous latent step, seen from each position: the tokens in a local window around it, all of them known.

Shapes: b clips, T steps, H W rows and columns, c code width, V codes, d width, k size of the local window (odd).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def local_window(codes: Tensor, size: int) -> Tensor:
    """The k x k codes around each position: (..., H, W) -> (..., H, W, k * k), -1 beyond the border.

    Example:
        >>> local_window(torch.tensor([[1, 2, 3]]), 3)[0, 0].tolist()
        [-1, -1, -1, -1, 1, 2, -1, -1, -1]
    """
    padded = F.pad(codes, (size // 2,) * 4, value=-1)
    return rearrange(padded.unfold(-2, size, 1).unfold(-2, size, 1), "... H W y x -> ... H W (y x)")


class PreviousStep(nn.Module):
    """A convolution over the embedded tokens of the previous step, or a learned vector where there is none."""

    def __init__(self, size: int, code_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(code_width, width, size, padding=size // 2, bias=False)
        self.absent = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.conv.weight, std=(code_width * size * size) ** -0.5)

    def forward(self, before: Tensor, first: Tensor) -> Tensor:
        """The step before each of T steps, embedded (b, T, H, W, c), -> (b, T, H, W, d). It is ignored where
        `first` (b, T) is True."""
        b = before.shape[0]
        conditioning = self.conv(rearrange(before, "b T H W c -> (b T) c H W"))
        return torch.where(
            first[:, :, None, None, None], self.absent, rearrange(conditioning, "(b T) d H W -> b T H W d", b=b)
        )


class CopyBias(nn.Module):
    """A pointer to the previous step: adds to the logits of the codes in a local window, by predicted amounts.

    Much of a video stays in place or moves by a position. Copying represents this without learning it for every code.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.amounts = nn.Linear(width, size * size)
        nn.init.zeros_(self.amounts.weight)
        nn.init.zeros_(self.amounts.bias)

    def forward(self, logits: Tensor, hidden: Tensor, neighbor_codes: Tensor) -> Tensor:
        """logits (..., V), changed in place; hidden (..., d); neighbor_codes (..., k * k), as `local_window` gives."""
        amounts = self.amounts(hidden)
        if self.size > 1:  # a window of a single position has no border
            amounts, neighbor_codes = amounts * (neighbor_codes >= 0), neighbor_codes.clamp(min=0)
        return logits.scatter_add_(-1, neighbor_codes, amounts.to(logits.dtype))
