"""What a world model must beat: predicting each place's frequencies, and that mixed with copying the step before.

All are scored on the same tokens, those of the steps after a window's first, in nats, a number for each factor of a
token: factor 0, factor 1 given factor 0, and so on, which sum to the token's. Nothing is as large as places times
codes, so that codebooks of 262,144 are no trouble.

Shapes: N steps, b windows, T steps of one, H W rows and columns, n tokens, k factors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.vocabulary import split_codes
from vidtok_plugin.store.reader import TokenStore
from world_model.measures.store_tokens import episode_tokens

SMOOTHINGS = tuple(10 ** (exponent / 4) for exponent in range(-16, 9))  # of the counts, tried on the training data
EM_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How often each of the keys that were seen was seen."""

    keys: Tensor  # (m,) int64, sorted
    counts: Tensor  # (m,) float64

    @classmethod
    def of(cls, keys: Tensor) -> "Counts":
        """Count keys (n,)."""
        found, counts = keys.unique(return_counts=True)
        return cls(keys=found, counts=counts.double())

    def __getitem__(self, keys: Tensor) -> Tensor:
        """The counts of keys (n,), 0 of what was not seen."""
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[places] == keys, self.counts[places], 0.0)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Frequencies of values in a context, smoothed by a coarser level's probability q.

    `p(value | context) = (count of value in context + s q(value)) / (count of context + s)`. The smoothing s maximises
    the likelihood of the training data, each token left out of the counts that predict it.
    """

    pairs: Counts
    contexts: Counts
    size: int
    smoothing: float

    @classmethod
    def fit(cls, contexts: Tensor, values: Tensor, size: int, coarser: Tensor) -> tuple["Level", Tensor]:
        """The level of tokens (n,) whose coarser probabilities are given; and each one's probability, left out."""
        keys = contexts * size + values
        pairs, seen = Counts.of(keys), Counts.of(contexts)
        others, all_others = pairs[keys] - 1, seen[contexts] - 1

        def left_out(s: float) -> Tensor:
            return (others + s * coarser) / (all_others + s)

        smoothing = max(SMOOTHINGS, key=lambda s: float(left_out(s).log().mean()))
        return cls(pairs=pairs, contexts=seen, size=size, smoothing=smoothing), left_out(smoothing)

    def __call__(self, contexts: Tensor, values: Tensor, coarser: Tensor) -> Tensor:
        """The probabilities of values (n,) in their contexts (n,)."""
        counts = self.pairs[contexts * self.size + values]
        return (counts + self.smoothing * coarser) / (self.contexts[contexts] + self.smoothing)


@dataclass(frozen=True, kw_only=True)
class FactorTable:
    """The frequencies of one factor given those before it: overall, with those before it, and then at each place."""

    overall: Tensor  # (values,) probabilities, one count added to each
    levels: tuple[Level, ...]

    @classmethod
    def fit(cls, places: Tensor, before: Tensor, span: int, values: Tensor, size: int) -> tuple["FactorTable", Tensor]:
        """`before` (n,) in 0 .. span - 1 tells the factors before; also gives each token's probability, left out."""
        overall = (torch.bincount(values, minlength=size).double() + 1) / (len(values) + size)
        p, levels = overall[values], []
        for contexts in cls._contexts(places, before, span):
            level, p = Level.fit(contexts, values, size, p)
            levels.append(level)
        return cls(overall=overall, levels=tuple(levels)), p

    def __call__(self, places: Tensor, before: Tensor, span: int, values: Tensor) -> Tensor:
        """The probabilities of values (n,) at their places, given the factors before."""
        p = self.overall[values]
        for level, contexts in zip(self.levels, self._contexts(places, before, span), strict=True):
            p = level(contexts, values, p)
        return p

    @staticmethod
    def _contexts(places: Tensor, before: Tensor, span: int) -> list[Tensor]:
        """From coarse to fine; the first factor has none before it."""
        return [places] if span == 1 else [before, places * span + before]


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Unigram and copy, fitted on training data.

    Unigram: each place's frequencies of a token's factors, one after another. Copy: `w [v is the last step's token
    here] + (1 - w) unigram`, of the whole token; a factor's part of it is that of the tokens that agree so far. The
    weight w maximises the likelihood of the training data, as the smoothings do.

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
        """Fit on episodes' codes (N, H, W) each."""
        sizes = tuple(factor_sizes)
        stored = [codes.long() for codes in episodes]
        codes = torch.cat(stored)
        tables, left_out = [], torch.ones(codes.numel(), dtype=torch.float64)
        places, factors = _places(codes), split_codes(codes.flatten(), sizes)
        for before, span, values, size in _in_turn(factors, sizes):
            table, p = FactorTable.fit(places, before, span, values, size)
            tables.append(table)
            left_out = left_out * p
        parts = left_out.view(codes.shape).split([len(part) for part in stored])
        same = torch.cat([(part[1:] == part[:-1]).flatten() for part in stored])
        weight = _fit_weight(same, torch.cat([part[1:].flatten() for part in parts]))
        return cls(factor_sizes=sizes, tables=tuple(tables), copy_weight=weight)

    @classmethod
    def fit_store(cls, store: TokenStore, factor_sizes: Sequence[int]) -> "Baselines":
        """Fit on a store (of its training split); on episodes evenly spaced over a large one."""
        return cls.fit(episode_tokens(store), factor_sizes)

    def token_losses(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (b, T, H, W) -> unigram's and copy's losses of steps 1 .. T-1, (b, T - 1, H, W, k) each."""
        codes = codes.long().cpu()
        targets = codes[:, 1:]
        factors, past = (split_codes(part.flatten(), self.factor_sizes) for part in (targets, codes[:, :-1]))
        places = _places(targets)
        unigram = torch.ones(targets.numel(), dtype=torch.float64)
        agrees = torch.ones_like(unigram)  # whether the last step's token is this one, as far as factors go
        copy, losses = torch.ones_like(unigram), []
        for index, (before, span, values, _) in enumerate(_in_turn(factors, self.factor_sizes)):
            p = self.tables[index](places, before, span, values)
            unigram = unigram * p
            agrees = agrees * (values == past[:, index])
            joint = self.copy_weight * agrees + (1 - self.copy_weight) * unigram
            losses.append(torch.stack([-p.log(), -(joint / copy).log()]))
            copy = joint
        both = torch.stack(losses, dim=-1).view(2, *targets.shape, len(losses))
        return both[0], both[1]


def _places(codes: Tensor) -> Tensor:
    """The place (row, column) of each of the codes (..., H, W), as one number, (n,)."""
    height, width = codes.shape[-2:]
    return torch.arange(height * width).view(height, width).expand(codes.shape).flatten()


def _in_turn(factors: Tensor, sizes: tuple[int, ...]) -> Iterable[tuple[Tensor, int, Tensor, int]]:
    """For each factor of (n, k): those before it as one number, how many such there are, its values and its size."""
    before, span = torch.zeros_like(factors[:, 0]), 1
    for values, size in zip(factors.unbind(-1), sizes, strict=True):
        yield before, span, values, size
        before, span = before * size + values, span * size


def _fit_weight(same: Tensor, unigram: Tensor) -> float:
    """The mixture's weight of copying, by expectation maximisation."""
    weight = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(EM_ROUNDS):
        copied = weight * same
        weight = (copied / (copied + (1 - weight) * unigram)).mean()
    # Where nothing ever changed in training, a change must still be possible.
    return min(float(weight), len(same) / (len(same) + 1))
