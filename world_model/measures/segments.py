"""Statistics of segments of play, real or imagined, that need no ground truth and show when rollouts drift away.

    token_divergence   Jensen-Shannon divergence, in nats, between the frequencies of the tokens' factors here and in
                       the training split, averaged over factors: rises if a rollout uses few codes or unusual ones
    token_frechet      the same for continuous tokens: Frechet distance between Gaussians fitted to them
    unchanged_share    fraction of tokens equal to the previous step's: 1 for frozen play, near 0 for flicker
    motion             mean change of a pixel from frame to frame, in grey levels (0-255)
    sharpness          mean difference of neighbouring pixels, in grey levels (0-255): falls with blur and blank frames,
                       rises with noise
    retokenized_psnr   PSNR in dB between the frames and their reconstruction by the tokenizer: falls if the tokens
                       form combinations that real videos don't have

Shapes: b sequences, T latent steps, t h w frames and pixels, f frames a step, H W rows and columns, k factors.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.vocabulary import split_codes
from vidtok_plugin.common.devices import for_float64
from vidtok_plugin.metrics.frames import bounded_psnr
from vidtok_plugin.metrics.frechet import FeatureStatistics, frechet_distance
from world_model.rollout.tokens import reconstruct


class TokenFrequencies:
    """Counts of each value of each factor."""

    def __init__(self, factor_sizes: Sequence[int]) -> None:
        self.sizes = tuple(factor_sizes)
        self.counts = [torch.zeros(size, dtype=torch.float64) for size in self.sizes]

    def add(self, codes: Tensor) -> None:
        """Count the codes of a tensor of any shape."""
        for counts, values in zip(self.counts, split_codes(codes.cpu().flatten(), self.sizes).unbind(-1), strict=True):
            counts += torch.bincount(values, minlength=len(counts))

    def distance(self, other: "TokenFrequencies") -> float:
        """The Jensen-Shannon divergence, averaged over factors: 0 to log 2."""
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
        """The Frechet distance, 0 or above."""
        a, b = self.statistics, other.statistics
        return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


Tokens = TokenFrequencies | TokenVectors


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """The Jensen-Shannon divergence of two distributions (n,), in nats.

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
    """Tokens and the frames that they decode to. Step 0 is frame 0; every later step is f frames."""

    tokens: Tensor  # (b, T, H, W) or (b, T, H, W, d)
    video: Tensor  # (b, 3, 1 + (T - 1) f, h, w) in [-1, 1]

    def segments(self, steps: int, *, first: int, temporal_factor: int) -> "Iterable[Sequences]":
        """Consecutive segments of `steps` steps from step `first` >= 1 on, each preceded by one step and one frame."""
        for start in range(first, self.tokens.shape[1] - steps + 1, steps):
            frame = (start - 1) * temporal_factor  # the last one of the preceding step
            yield Sequences(
                tokens=self.tokens[:, start - 1 : start + steps],
                video=self.video[:, :, frame : frame + 1 + steps * temporal_factor],
            )


class SegmentStatistics:
    """Accumulates the statistics of one segment over batches of sequences."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, segment: Sequences, adapter: TokenizerAdapter) -> None:
        """Add a batch; its first step and first frame only serve as predecessors."""
        tokens, video = segment.tokens, segment.video.clamp(-1, 1)
        self.tokens.add(tokens[:, 1:])
        if not tokens.is_floating_point():
            self._add("unchanged_share", tokens[:, 1:] == tokens[:, :-1])
        exact = for_float64(video).double()
        frames = exact[:, :, 1:] * 127.5
        self._add("motion", exact.mul(127.5).diff(dim=2).abs())
        across, down = (frames.diff(dim=dim).abs() for dim in (-1, -2))
        self._add("sharpness", torch.cat([across.flatten(), down.flatten()]))
        self._add("retokenized_psnr", bounded_psnr(video, reconstruct(adapter, video))[:, 1:])

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(for_float64(values).double().sum())
        self._counts[name] = self._counts.get(name, 0) + values.numel()

    def compute(self, reference: Tokens) -> dict[str, float]:
        """The statistics by name; `reference` holds the tokens of the training split."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        if isinstance(self.tokens, TokenFrequencies) and isinstance(reference, TokenFrequencies):
            means = {"token_divergence": self.tokens.distance(reference), **means}
        elif isinstance(self.tokens, TokenVectors) and isinstance(reference, TokenVectors):
            means = {"token_frechet": self.tokens.distance(reference), **means}
        else:
            raise TypeError(
                "SegmentStatistics: the reference must have the same kind of tokens, discrete or continuous."
            )
        assert all(math.isfinite(value) for value in means.values()), means
        return means
