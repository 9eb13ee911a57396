"""Baselines that a world model must beat: code frequencies at each position, and these mixed with copying.

Model and baselines are scored on the same tokens: every step of a window except the first. Losses are in nats, one for
each factor of a token (factor 0, factor 1 given factor 0, ...); they add up to the token's loss. Tables hold only
values that occurred, never positions times codes, so codebooks of 262,144 fit.

Shapes: N steps of an episode, b windows of T steps, H W rows and columns, n tokens, k factors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.vocabulary import split_codes
from vidtok_plugin.store.reader import TokenStore
from world_model.measures.store_tokens import episode_tokens

SMOOTHINGS = tuple(10 ** (exponent / 4) for exponent in range(-16, 9))  # candidates, chosen on the training data
EM_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of the keys that occurred."""

    keys: Tensor  # (m,) int64, sorted
    counts: Tensor  # (m,) float64

    @classmethod
    def of(cls, keys: Tensor) -> "Counts":
        """Count the keys (n,)."""
        found, counts = keys.unique(return_counts=True)
        return cls(keys=found, counts=counts.double())

    def __getitem__(self, keys: Tensor) -> Tensor:
        """The counts of keys (n,); 0 for keys that never occurred."""
        found = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[found] == keys, self.counts[found], 0.0)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Frequencies of values in a context, smoothed towards a coarser level's probability q.

    `p(value | context) = (count of value in context + s q(value)) / (count of context + s)`. The smoothing s maximises
    the leave-one-out likelihood of the training data: no token counts towards its own prediction.
    """

    pairs: Counts
    contexts: Counts
    size: int
    smoothing: float

    @classmethod
    def fit(cls, contexts: Tensor, values: Tensor, size: int, coarser: Tensor) -> tuple["Level", Tensor]:
        """Fit a level on tokens (n,) and their coarser probabilities; also returns leave-one-out probabilities (n,)."""
        keys = contexts * size + values
        pairs, seen = Counts.of(keys), Counts.of(contexts)
        others, all_others = pairs[keys] - 1, seen[contexts] - 1

        def leave_one_out(s: float) -> Tensor:
            return (others + s * coarser) / (all_others + s)

        smoothing = max(SMOOTHINGS, key=lambda s: float(leave_one_out(s).log().mean()))
        return cls(pairs=pairs, contexts=seen, size=size, smoothing=smoothing), leave_one_out(smoothing)

    def __call__(self, contexts: Tensor, values: Tensor, coarser: Tensor) -> Tensor:
        """The probabilities of values (n,) in their contexts (n,)."""
        counts = self.pairs[contexts * self.size + values]
        return (counts + self.smoothing * coarser) / (self.contexts[contexts] + self.smoothing)


@dataclass(frozen=True, kw_only=True)
class FactorTable:
    """Frequencies of one factor, from coarse to fine: overall, given the earlier factors, and then at each position."""

    overall: Tensor  # (values,) probabilities with add-one smoothing
    levels: tuple[Level, ...]

    @classmethod
    def fit(
        cls, positions: Tensor, before: Tensor, span: int, values: Tensor, size: int
    ) -> tuple["FactorTable", Tensor]:
        """Fit on tokens (n,); `before` in 0 .. span - 1 encodes their earlier factors. Also returns leave-one-out
        probabilities (n,)."""
        overall = (torch.bincount(values, minlength=size).double() + 1) / (len(values) + size)
        p, levels = overall[values], []
        for contexts in cls._contexts(positions, before, span):
            level, p = Level.fit(contexts, values, size, p)
            levels.append(level)
        return cls(overall=overall, levels=tuple(levels)), p

    def __call__(self, positions: Tensor, before: Tensor, span: int, values: Tensor) -> Tensor:
        """The probabilities of values (n,) at their positions, given the earlier factors."""
        p = self.overall[values]
        for level, contexts in zip(self.levels, self._contexts(positions, before, span), strict=True):
            p = level(contexts, values, p)
        return p

    @staticmethod
    def _contexts(positions: Tensor, before: Tensor, span: int) -> list[Tensor]:
        """Contexts from coarse to fine. The first factor has no earlier ones."""
        return [positions] if span == 1 else [before, positions * span + before]


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The unigram and the copy baseline, fitted on training data.

    Unigram: the frequencies of a token's factors at each position, one factor after another. Copy: the mixture
    `w [token equals the previous step's token here] + (1 - w) unigram` over whole tokens; a factor's probability is
    conditioned on the factors before it. Like the smoothings, the weight w maximises the leave-one-out likelihood.

    Example:
        >>> still = Baselines.fit([torch.zeros(50, 2, 2), torch.ones(50, 2, 2)], (4,))
        >>> unigram, copy = still.token_losses(torch.zeros(1, 3, 2, 2))
        >>> unigram.shape, round(float(unigram.mean()), 1), round(float(copy.mean()), 1)
        (torch.Size([1, 2, 2, 2, 1]), 0.7, 0.0)
    """

    factor_sizes: tuple[int, ...]
    tables: tuple[FactorTable, ...]
    copy_weight: float

    @classmethod
    def fit(cls, episodes: Iterable[Tensor], factor_sizes: Sequence[int]) -> "Baselines":
        """Fit on episodes, each given by its codes (N, H, W)."""
        sizes = tuple(factor_sizes)
        stored = [codes.long() for codes in episodes]
        codes = torch.cat(stored)
        tables, leave_one_out = [], torch.ones(codes.numel(), dtype=torch.float64)
        positions, factors = _positions(codes), split_codes(codes.flatten(), sizes)
        for before, span, values, size in _in_turn(factors, sizes):
            table, p = FactorTable.fit(positions, before, span, values, size)
            tables.append(table)
            leave_one_out = leave_one_out * p
        unigram = leave_one_out.view(codes.shape).split([len(episode) for episode in stored])
        same = torch.cat([(episode[1:] == episode[:-1]).flatten() for episode in stored])
        weight = _fit_weight(same, torch.cat([p[1:].flatten() for p in unigram]))
        return cls(factor_sizes=sizes, tables=tuple(tables), copy_weight=weight)

    @classmethod
    def fit_store(cls, store: TokenStore, factor_sizes: Sequence[int]) -> "Baselines":
        """Fit on a store's episodes; on evenly spaced ones if the store is large."""
        return cls.fit(episode_tokens(store), factor_sizes)

    def token_losses(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The unigram and copy losses, (b, T - 1, H, W, k) each, of steps 1 .. T-1 of windows (b, T, H, W)."""
        codes = codes.long().cpu()
        targets = codes[:, 1:]
        factors, past = (split_codes(x.flatten(), self.factor_sizes) for x in (targets, codes[:, :-1]))
        positions = _positions(targets)
        unigram = torch.ones(targets.numel(), dtype=torch.float64)
        agrees = torch.ones_like(unigram)  # 1 where all factors so far equal those of the previous step's token
        copy, losses = torch.ones_like(unigram), []
        for index, (before, span, values, _) in enumerate(_in_turn(factors, self.factor_sizes)):
            p = self.tables[index](positions, before, span, values)
            unigram = unigram * p
            agrees = agrees * (values == past[:, index])
            joint = self.copy_weight * agrees + (1 - self.copy_weight) * unigram
            losses.append(torch.stack([-p.log(), -(joint / copy).log()]))
            copy = joint
        both = torch.stack(losses, dim=-1).view(2, *targets.shape, len(losses))
        return both[0], both[1]


def _positions(codes: Tensor) -> Tensor:
    """The position of each code (..., H, W) in its grid, in raster order, (n,)."""
    height, width = codes.shape[-2:]
    return torch.arange(height * width).view(height, width).expand(codes.shape).flatten()


def _in_turn(factors: Tensor, sizes: tuple[int, ...]) -> Iterable[tuple[Tensor, int, Tensor, int]]:
    """For each factor of (n, k): the earlier factors as one number, the range of that number, the values, the size."""
    before, span = torch.zeros_like(factors[:, 0]), 1
    for values, size in zip(factors.unbind(-1), sizes, strict=True):
        yield before, span, values, size
        before, span = before * size + values, span * size


def _fit_weight(same: Tensor, unigram: Tensor) -> float:
    """The mixture weight of copying, by expectation maximisation."""
    weight = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(EM_ROUNDS):
        copied = weight * same
        weight = (copied / (copied + (1 - weight) * unigram)).mean()
    # If nothing changed in training, a change must still have a probability above 0.
    return min(float(weight), len(same) / (len(same) + 1))
