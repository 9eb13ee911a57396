"""Statistics of stretches of play, real or imagined, that need no pairing, and show when rollouts leave real play.

    token_divergence   Jensen-Shannon divergence, in nats, of the frequencies of the tokens' factors from those of the
                       training split, mean over factors: rises where a rollout keeps to few codes, or draws odd ones
    token_frechet      for continuous tokens the Frechet distance of their vectors' Gaussians, likewise
    unchanged_share    share of tokens that are as the step before: 1 if play is frozen, near 0 if it boils
    motion             mean change of a pixel from frame to frame, in levels of 255: the same for any kind of token
    sharpness          mean difference of neighbouring pixels, in levels of 255: falls with blur and blank pictures,
                       rises with noise
    retokenized_psnr   PSNR in dB of the frames against themselves encoded and decoded once more: falls where tokens
                       don't fit together as those of videos do

Shapes: b sequences, T latent steps, t h w frames and pixels, f frames a step, H W rows and columns, k factors.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.vocabulary import split_codes
from vidtok_plugin.metrics.frames import bounded_psnr
from vidtok_plugin.metrics.frechet import FeatureStatistics, frechet_distance
from world_model.rollout.tokens import reconstruct


class TokenFrequencies:
    """How often each value of each factor was seen."""

    def __init__(self, factor_sizes: Sequence[int]) -> None:
        self.sizes = tuple(factor_sizes)
        self.counts = [torch.zeros(size, dtype=torch.float64) for size in self.sizes]

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        for counts, values in zip(self.counts, split_codes(codes.cpu().flatten(), self.sizes).unbind(-1), strict=True):
            counts += torch.bincount(values, minlength=len(counts))

    def distance(self, other: "TokenFrequencies") -> float:
        """The mean over factors of their Jensen-Shannon divergences, 0 to log 2."""
        pairs = zip(self.counts, other.counts, strict=True)
        return sum(jensen_shannon(a / a.sum(), b / b.sum()) for a, b in pairs) / len(self.counts)


class TokenVectors:
    """Mean and covariance of continuous tokens."""

    def __init__(self, width: int) -> None:
        self.statistics = FeatureStatistics(width)

    def add(self, tokens: Tensor) -> None:
        """Add tokens (..., d)."""
        self.statistics.update(tokens.flatten(0, -2))

    def distance(self, other: "TokenVectors") -> float:
        """The Frechet distance, 0 and above."""
        a, b = self.statistics, other.statistics
        return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


Tokens = TokenFrequencies | TokenVectors


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Of two distributions (n,), in nats.

    Example:
        >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
        0.0
        >>> round(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), 4)  # log 2
        0.6931
    """
    middle = (p + q) / 2
    halves = [torch.xlogy(x, x) - torch.xlogy(x, middle) for x in (p, q)]
    return max(0.0, float((halves[0] + halves[1]).sum() / 2))


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Sequences of play: tokens, and the frames that they decode to. Step 0 is frame 0, each other step f frames."""

    tokens: Tensor  # (b, T, H, W) or (b, T, H, W, d)
    video: Tensor  # (b, 3, 1 + (T - 1) f, h, w) in [-1, 1]

    def segments(self, steps: int, *, first: int, temporal_factor: int) -> "Iterable[Sequences]":
        """Stretches of `steps` steps from step `first` >= 1 on, each after the step and the frame before it."""
        for start in range(first, self.tokens.shape[1] - steps + 1, steps):
            frame = (start - 1) * temporal_factor  # the last of the step before
            yield Sequences(
                tokens=self.tokens[:, start - 1 : start + steps],
                video=self.video[:, :, frame : frame + 1 + steps * temporal_factor],
            )


class StretchStatistics:
    """The statistics of one stretch over many sequences, which come in parts and are not kept."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, segment: Sequences, adapter: TokenizerAdapter) -> None:
        """Add the steps and frames after the stretch's first."""
        tokens, video = segment.tokens, segment.video.clamp(-1, 1)
        self.tokens.add(tokens[:, 1:])
        if not tokens.is_floating_point():
            self._note("unchanged_share", (tokens[:, 1:] == tokens[:, :-1]).double())
        frames = video[:, :, 1:].double() * 127.5
        self._note("motion", video.double().mul(127.5).diff(dim=2).abs())
        across, down = (frames.diff(dim=dim).abs() for dim in (-1, -2))
        self._note("sharpness", torch.cat([across.flatten(), down.flatten()]))
        again = reconstruct(adapter, video)
        self._note("retokenized_psnr", bounded_psnr(video, again)[:, 1:])

    def _note(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
        self._counts[name] = self._counts.get(name, 0) + values.numel()

    def compute(self, reference: Tokens) -> dict[str, float]:
        """By name; `reference` are the tokens of the training split."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        if isinstance(self.tokens, TokenFrequencies) and isinstance(reference, TokenFrequencies):
            means = {"token_divergence": self.tokens.distance(reference), **means}
        elif isinstance(self.tokens, TokenVectors) and isinstance(reference, TokenVectors):
            means = {"token_frechet": self.tokens.distance(reference), **means}
        else:
            raise TypeError("StretchStatistics: the reference must be of the same kind of tokens.")
        assert all(math.isfinite(value) for value in means.values()), means
        return means
