"""Embeddings of tokens: a table with one vector per code, or per factor of a code; a projection of patches.

A code's vector is the sum of a free one and of one for each digit of the FSQ code. Codes with common digits stand for
nearby latents and share the vectors of these digits, so that a codebook of thousands is learned from few tokens. A
large codebook has a table for each factor, and a code's vector is the sum over its factors.

`tables()` computes the tables once for many tokens: those of a batch, or of a latent step.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.adapter.vocabulary import split_codes

Factors = Sequence[tuple[int, tuple[int, ...] | None]]  # the size of each, and its FSQ levels
Tables = tuple[Tensor, ...]


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
    """`forward()` gives the table (codebook, width): free vectors plus, with `fsq_levels`, those of the digits.

    Vectors are initialized with standard deviation `std`: those of the digits if there are any, with free vectors of 0.
    """

    def __init__(self, codebook_size: int, width: int, fsq_levels: Sequence[int] | None, std: float) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(codebook_size, width))
        self.digits: nn.Parameter | None = None
        self.membership: Tensor
        if fsq_levels is None:
            nn.init.normal_(self.free, std=std)
            return
        # The gradient of a product with one-hot digits is a product too; that of indexing is a slow scatter.
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


class CodeEmbedding(nn.Module):
    """Codes (...) -> vectors (..., d), each the sum over the code's factors."""

    def __init__(self, factors: Factors, width: int, std: float) -> None:
        super().__init__()
        self.sizes = tuple(size for size, _ in factors)
        self.factors = nn.ModuleList(
            CodeTable(size, width, levels, std=std / len(factors) ** 0.5) for size, levels in factors
        )

    def tables(self) -> Tables:
        return tuple(table() for table in self.factors)

    def forward(self, codes: Tensor, tables: Tables) -> Tensor:
        if len(self.sizes) == 1:
            return F.embedding(codes, tables[0])
        factors = split_codes(codes, self.sizes).unbind(-1)
        vectors = [F.embedding(factor, table) for factor, table in zip(factors, tables, strict=True)]
        return torch.stack(vectors).sum(0)


class PatchEmbedding(nn.Module):
    """Patches (..., p) -> vectors (..., d), with entries of deviation `std` for normalised patches."""

    def __init__(self, patch_dim: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, patch_dim) * std / patch_dim**0.5)

    def tables(self) -> Tables:
        return (self.weight,)

    def forward(self, patches: Tensor, tables: Tables) -> Tensor:
        return F.linear(patches, tables[0])


TokenEmbedding = CodeEmbedding | PatchEmbedding
