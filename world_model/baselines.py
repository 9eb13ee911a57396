"""What a world model must beat: predicting each place's frequencies, and that mixed with copying the step
before.

All are scored on the same tokens, those of the steps after a window's first, in nats a token.

Shapes: N steps, b windows, T steps of one, H W rows and columns, V codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.store import TokenStore

SMOOTHINGS = tuple(10 ** (exponent / 4) for exponent in range(-16, 9))  # of the counts, tried on the training data
EM_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Unigram and copy, fitted on training data.

    Unigram: `p(v) = (count of v at this place + s u(v)) / (steps + s)`, with u the frequencies over all
    places, themselves smoothed by one count a code. Copy: `w [v is the last step's token here] + (1 - w)
    unigram`. The smoothing s and the weight w maximise the likelihood of the training data, each step left
    out of the counts that predict it.
    """

    unigram: Tensor  # (H, W, V) probabilities
    smoothing: float
    copy_weight: float

    @classmethod
    def fit(cls, episodes: Iterable[Tensor], codebook_size: int) -> "Baselines":
        """Fit on episodes' codes (N, H, W) each."""
        stored = [codes.long() for codes in episodes]
        codes = torch.cat(stored)
        counts = _counts(codes, codebook_size)
        steps = codes.shape[0]
        overall = (counts.sum((0, 1)) + 1) / (codes.numel() + codebook_size)
        # The tokens that are predicted, their step left out of the counts at its place.
        here = _at(counts, codes) - 1
        everywhere = overall[codes]

        def left_out(smoothing: float) -> Tensor:
            return (here + smoothing * everywhere) / (steps - 1 + smoothing)

        smoothing = max(SMOOTHINGS, key=lambda s: float(left_out(s).log().mean()))
        unigram = (counts + smoothing * overall) / (steps + smoothing)
        p = torch.cat([part[1:].flatten() for part in left_out(smoothing).split([len(part) for part in stored])])
        same = torch.cat([(part[1:] == part[:-1]).flatten() for part in stored])
        return cls(unigram=unigram, smoothing=smoothing, copy_weight=_fit_weight(same, p))

    @classmethod
    def fit_store(cls, store: TokenStore) -> "Baselines":
        """Fit on all episodes of a store (of its training split)."""
        if store.metadata.codebook_size is None:
            raise ValueError(f"Baselines: the tokens of {store.folder} must be discrete (FSQ), got continuous ones.")
        episodes = (store.window(index, 0, episode.steps)["codes"] for index, episode in enumerate(store.episodes))
        return cls.fit(episodes, store.metadata.codebook_size)

    def token_losses(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (b, T, H, W) -> unigram's and copy's cross entropy of steps 1 .. T-1, (b, T - 1, H, W)
        each."""
        targets, before = codes[:, 1:].long(), codes[:, :-1].long()
        unigram = _at(self.unigram, targets.flatten(0, 1)).view(targets.shape)
        copy = self.copy_weight * (targets == before) + (1 - self.copy_weight) * unigram
        return -unigram.log(), -copy.log()

    def cross_entropies(self, batches: Iterable[TensorDict]) -> tuple[float, float]:
        """Mean cross entropy of unigram and copy over the steps after the first of batches of windows."""
        sums, count = torch.zeros(2, dtype=torch.float64), 0
        for batch in batches:
            valid = batch["valid"][:, 1:]
            losses = torch.stack(self.token_losses(batch["codes"]))[:, valid]
            sums += losses.double().flatten(1).sum(1)
            count += losses[0].numel()
        if count == 0:
            raise ValueError("Baselines: there must be at least one step to score, got none.")
        return float(sums[0] / count), float(sums[1] / count)


def _counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code stands at each place: (N, H, W) -> (H, W, V) float64."""
    _, height, width = codes.shape
    places = torch.arange(height * width).view(height, width)
    flat = torch.bincount((places * codebook_size + codes).flatten(), minlength=height * width * codebook_size)
    return flat.view(height, width, codebook_size).double()


def _at(table: Tensor, codes: Tensor) -> Tensor:
    """The entries of `table` (H, W, V) for codes (N, H, W) at their places."""
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in codes.shape[1:]), indexing="ij")
    return table[rows, columns, codes]


def _fit_weight(same: Tensor, unigram: Tensor) -> float:
    """The mixture's weight of copying, by expectation maximisation."""
    weight = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(EM_ROUNDS):
        copied = weight * same
        weight = (copied / (copied + (1 - weight) * unigram)).mean()
    return float(weight)
