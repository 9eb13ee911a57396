"""Normalization of vectors whose components have different units, by the mean and deviation of data."""

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """Vectors (..., size) in their own units to normalized ones and back, by statistics that are saved with a model.

    Both stay float32, whatever the precision of the model, and so do the statistics: other types would round them.

    Example:
        >>> normalization = Normalization(2)
        >>> normalization.set_statistics(torch.tensor([2.0, 7.0]), torch.tensor([1.0, 0.5]))
        >>> normalization(torch.tensor([5.0, 7.0])).tolist(), normalization.undo(torch.tensor([3.0, 0.0])).tolist()
        ([3.0, 0.0], [5.0, 7.0])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation (size,), which must be above 0."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, values: Tensor) -> Tensor:
        return (values.float() - self.mean) / self.std

    def undo(self, normalized: Tensor) -> Tensor:
        """Normalized vectors in their own units."""
        return normalized.float() * self.std + self.mean

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float32:
            self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self
