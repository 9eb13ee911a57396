"""Drawing tokens from logits by temperature, top-k and top-p, with random numbers that belong to each rollout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.common.field_checks import check_fields

BELOW_ONE = 1 - 2**-24  # the greatest float32 below 1: a sum times it is less than the sum

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a rollout draws its tokens.

    Logits are divided by `temperature` (0 takes the likeliest token). Then only the `top_k` likeliest tokens stay, and
    of these the fewest likeliest whose probabilities reach `top_p`. This applies to each factor of a factored code.
    Continuous tokens use neither: `temperature` scales the noise that they start from, and `flow_steps` is the number
    of steps along the flow, by default the model's. With `guidance` g, logits or velocities are
    `without + g * (with - without)`, with and without the actions. Equal `seed`s give equal rollouts: each depends
    on its index, not on the rest of the batch.

    Example:
        >>> Sampler(top_k=2).probabilities(torch.tensor([[2.0, 0.0, 1.0]]))
        tensor([[0.7311, 0.0000, 0.2689]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    flow_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature < 0:
            raise ValueError(f"Sampler: temperature must be 0 (greedy) or above, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampler: top_k must be at least 1, or None for all, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Sampler: top_p must be in (0, 1], or None for all, got {self.top_p}.")
        if self.guidance < 0:
            raise ValueError(f"Sampler: guidance must be 0 or above (1 is none), got {self.guidance}.")
        if self.flow_steps is not None and self.flow_steps < 1:
            raise ValueError(f"Sampler: flow_steps must be at least 1, or None, got {self.flow_steps}.")
        if self.seed < 0:
            raise ValueError(f"Sampler: seed must be 0 or above, got {self.seed}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, at temperature 0."""
        return self.temperature == 0

    @property
    def guided(self) -> bool:
        """Whether guidance changes anything, and doubles the model's rows."""
        return self.guidance != 1

    def model_rows(self, x: Tensor) -> Tensor:
        """The model's rows for rollouts (b, ...). With guidance there are two: with the actions, and without."""
        return torch.cat([x, x]) if self.guided else x

    def guide(self, rows: Tensor) -> Tensor:
        """Guided logits or velocities (b, ...) of the model's rows (2 b, ...), those with the actions first."""
        with_actions, without = (rows if rows.dtype == torch.float64 else rows.float()).chunk(2)
        limit = min(torch.finfo(rows.dtype).max, LARGEST)  # infinite logits would have no probabilities
        guided = without + min(self.guidance, LARGEST) * (with_actions - without)
        return guided.clamp(-limit, limit).to(rows.dtype)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution (b, V) that tokens are drawn from; when greedy, a single 1 in each row."""
        if self.greedy:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        p, order = self._kept(logits)
        return p if order is None else torch.zeros_like(logits, dtype=p.dtype).scatter(-1, order, p)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens (b,) for logits (b, V) and uniform numbers (b,) in [0, 1), by inverting the cumulative sum."""
        if self.greedy:
            return logits.argmax(-1)
        p, order = self._kept(logits)
        cumulative = p.cumsum(-1)
        total = cumulative[:, -1:]  # about 1, by rounding
        # A number rounded up to 1 would fall beyond the last token that has a probability.
        uniforms = uniforms.to(p).clamp(max=BELOW_ONE)[:, None]
        drawn = torch.searchsorted(cumulative, uniforms * total, right=True)
        return (drawn if order is None else order.gather(-1, drawn)).squeeze(-1)

    def _kept(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The probabilities after top-k and top-p, in falling order, with the codes' ids; without either, in order of
        ids, and None."""
        scaled = logits.float()
        if self.temperature != 1:
            # Relative to the greatest, since a quotient by a tiny temperature would be infinite.
            scaled = (scaled - scaled.amax(-1, keepdim=True)) / max(self.temperature, SMALLEST)
        if self.top_k is None and self.top_p is None:
            return scaled.softmax(-1), None
        scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            scaled, order = scaled[:, : self.top_k], order[:, : self.top_k]
        p = scaled.softmax(-1)
        if self.top_p is not None:
            before = p.cumsum(-1) - p  # total probability of the likelier ones
            p = p * (before < max(self.top_p, SMALLEST))
            p = p / p.sum(-1, keepdim=True)
        return p, order


class RolloutNoise:
    """Uniform numbers for each rollout of a batch, each from its own generator."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed, self.indices = seed, list(indices)
        self._generators = [np.random.default_rng([seed, index]) for index in indices]

    def restart(self, rows: Sequence[int], indices: Sequence[int]) -> None:
        """Let some rollouts draw the numbers of `indices`, one for each, from their beginning."""
        for row, index in zip(rows, indices, strict=True):
            self.indices[row] = index
            self._generators[row] = np.random.default_rng([self.seed, index])

    def uniforms(self, count: int) -> Tensor:
        """The next `count` numbers of each rollout, (b, count) float64 in [0, 1)."""
        return torch.from_numpy(np.stack([generator.random(count) for generator in self._generators]))

    def fork(self, futures: int = 1) -> "RolloutNoise":
        """`futures` consecutive copies for each rollout, which continue independently with the same numbers."""
        twin = RolloutNoise(self.seed, ())
        for index, generator in zip(self.indices, self._generators, strict=True):
            for _ in range(futures):
                twin.indices.append(index)
                copy = np.random.default_rng()
                copy.bit_generator.state = generator.bit_generator.state
                twin._generators.append(copy)
        return twin
