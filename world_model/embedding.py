"""Tables of one vector for each code, as the sum of a free vector and of one for each digit of an FSQ code.

Codes that share digits stand for nearby latents: what is learned of one holds for its neighbours too, so that
a codebook of thousands is learned from few tokens.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


def fsq_digits(levels: Sequence[int]) -> Tensor:
    """The digits (codebook, len(levels)) of every code; the first level is the least significant.

    Example:
        >>> fsq_digits((2, 3)).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]
    """
    codes = torch.arange(prod(levels))
    digits = []
    for size in levels:
        digits.append(codes % size)
        codes = codes // size
    return torch.stack(digits, dim=-1)


class CodeTable(nn.Module):
    """Calling it gives the table (codebook, width): free vectors plus, with `fsq_levels`, the digits'
    vectors.

    `std` is that of the vectors at the start; with digits, theirs, and the free vectors start at zero.
    """

    def __init__(self, codebook_size: int, width: int, fsq_levels: Sequence[int] | None, std: float) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(codebook_size, width))
        self.digits: nn.Parameter | None = None
        self.membership: Tensor
        if fsq_levels is None:
            nn.init.normal_(self.free, std=std)
            return
        # A product with the codes' one-hot digits: its gradient is a product too, where that of indexing is a
        # scatter.
        one_hot = [
            nn.functional.one_hot(digit, size).float()
            for digit, size in zip(fsq_digits(fsq_levels).unbind(-1), fsq_levels, strict=True)
        ]
        self.register_buffer("membership", torch.cat(one_hot, dim=-1), persistent=False)
        self.digits = nn.Parameter(torch.randn(sum(fsq_levels), width) * std / len(fsq_levels) ** 0.5)

    def forward(self) -> Tensor:
        if self.digits is None:
            return self.free
        return torch.addmm(self.free, self.membership, self.digits)
