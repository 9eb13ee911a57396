"""Normalization of vectors whose components have different units, by the mean and deviation of data."""

import torch
from torch import Tensor, nn

CONSTANT = 1e-6  # a component whose deviation is at most this fraction of its largest magnitude counts as constant


class Moments:
    """Mean and standard deviation of each component of vectors that are added batch by batch, in float64.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> moments.mean.tolist(), moments.scale.tolist()  # the second component is constant
        ([2.0, 7.0], [1.0, 1.0])
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)  # sum of squared differences from the mean
        self._largest = torch.zeros(size, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add vectors (..., size); those with NaN don't count."""
        rows = values.reshape(-1, len(self.mean)).double()
        rows = rows[~rows.isnan().any(-1)]
        if len(rows) == 0:
            return
        # Pairwise combination (Chan et al., 1983): a sum of squares would lose small deviations beside large means.
        mean = rows.mean(0)
        total, shift = self.count + len(rows), mean - self.mean
        self._squares += (rows - mean).square().sum(0) + shift.square() * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self._largest = torch.maximum(self._largest, rows.abs().amax(0))
        self.count = total

    @property
    def std(self) -> Tensor:
        """(size,), 0 of constant components."""
        return (self._squares / max(self.count, 1)).sqrt()

    @property
    def scale(self) -> Tensor:
        """(size,): the deviations by which to divide, 1 for constant components."""
        return torch.where(self.std <= CONSTANT * self._largest, 1.0, self.std)


class Normalization(nn.Module):
    """Vectors (..., size) in their own units to normalized ones and back, by statistics that are saved with a model.

    Both stay float32, whatever the precision of the model, and so do the statistics: other types would round them.

    Example:
        >>> normalization = Normalization(2)
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> normalization.fit(moments)
        >>> normalization(torch.tensor([5.0, 7.0])).tolist(), normalization.undo(torch.tensor([3.0, 0.0])).tolist()
        ([3.0, 0.0], [5.0, 7.0])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, moments: Moments) -> None:
        """Take over statistics."""
        self.mean.copy_(moments.mean)
        self.scale.copy_(moments.scale)

    def forward(self, values: Tensor) -> Tensor:
        return (values.float() - self.mean) / self.scale

    def undo(self, normalized: Tensor) -> Tensor:
        """Normalized vectors in their own units."""
        return normalized.float() * self.scale + self.mean

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        mean, scale = self.mean, self.scale
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float32:
            self.mean, self.scale = mean.to(self.mean.device), scale.to(self.scale.device)
        return self
