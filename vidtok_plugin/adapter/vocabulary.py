"""Vocabulary: FSQ codes as ids followed by special tokens, and codes split into factors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.common.tensor_checks import as_int64, check_range


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of a codebook with these FSQ levels, then the ids of the special tokens.

    Example:
        >>> vocabulary = Vocabulary(levels=(8,) * 6, special_tokens=("bos", "eos"))
        >>> vocabulary.size, vocabulary.special_ids, vocabulary.factor_sizes
        (262146, {'bos': 262144, 'eos': 262145}, (512, 512))
    """

    levels: tuple[int, ...]
    special_tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError(
                f"TokenizerAdapter: special_tokens must differ from each other, got {self.special_tokens}."
            )

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def size(self) -> int:
        return self.codebook_size + len(self.special_tokens)

    @property
    def special_ids(self) -> dict[str, int]:
        return {name: self.codebook_size + i for i, name in enumerate(self.special_tokens)}

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Sizes of the factors, products of consecutive levels, least significant first (see `factor_levels`)."""
        return tuple(math.prod(levels) for levels in factor_levels(self.levels))

    def split(self, ids: Tensor) -> Tensor:
        """Codebook ids (..., n) -> factors (..., n, k), least significant first."""
        return split_codes(self.checked_codebook_ids(ids), self.factor_sizes)

    def join(self, factors: Tensor) -> Tensor:
        """Factors (..., n, k) -> codebook ids (..., n)."""
        sizes = self.factor_sizes
        factors = as_int64(factors, who="TokenizerAdapter", name="factors")
        if factors.shape[-1] != len(sizes):
            raise ValueError(
                f"TokenizerAdapter: factors must end in a dimension of {len(sizes)}, got {tuple(factors.shape)}."
            )
        for k, size in enumerate(sizes):
            check_range(factors[..., k], size, who="TokenizerAdapter", name=f"factor {k}")
        return join_codes(factors, sizes)

    def checked_codebook_ids(self, ids: Tensor) -> Tensor:
        """These ids as int64; a ValueError that names the first one outside the codebook, on any device."""
        ids = as_int64(ids, who="TokenizerAdapter", name="codebook ids")
        check_range(ids, self.codebook_size, who="TokenizerAdapter", name="codebook ids")
        return ids


def factor_levels(levels: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The levels of each factor: a split in two that keeps the larger factor smallest. A single level stays whole.

    Example:
        >>> factor_levels((8, 8, 8, 5, 5, 5))
        ((8, 8, 8), (5, 5, 5))
    """
    whole = tuple(levels)
    if len(whole) == 1:
        return (whole,)
    cuts = [(whole[:i], whole[i:]) for i in range(1, len(whole))]
    return min(cuts, key=lambda cut: max(math.prod(part) for part in cut))


def split_codes(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Codes (...) -> factors (..., k) of these sizes, least significant first, without checking values."""
    factors, rest = [], codes
    for size in sizes:
        factors.append(rest % size)
        rest = rest // size
    return torch.stack(factors, dim=-1)


def join_codes(factors: Tensor, sizes: Sequence[int]) -> Tensor:
    """Factors (..., k) of these sizes -> codes (...), without checking values."""
    codes = torch.zeros_like(factors[..., 0])
    for k in reversed(range(len(sizes))):
        codes = codes * sizes[k] + factors[..., k]
    return codes
