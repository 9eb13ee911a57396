"""The Frechet distance of two sets of feature vectors, each taken for a Gaussian (Dowson and Landau 1982)."""

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance of feature vectors that come in parts, in float64; the vectors themselves are not kept.

    Example:
        >>> statistics = FeatureStatistics(2)
        >>> statistics.update(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> statistics.update(torch.tensor([[1.0, 3.0]]))
        >>> statistics.count, statistics.mean.tolist(), statistics.covariance().tolist()
        (3, [1.0, 1.0], [[1.0, 0.0], [0.0, 3.0]])
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)  # sum of outer products about the mean

    def update(self, features: Tensor) -> None:
        """Adds vectors (n, size), n >= 0."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"FeatureStatistics: features must have the shape (n, {len(self.mean)}), got {tuple(features.shape)}."
            )
        if not len(features):
            return
        # Merged about the means, not by sums of squares, which lose the digits of features far from 0 (Chan et al.).
        x = features.detach().to("cpu", torch.float64)
        mean, total = x.mean(0), self.count + len(x)
        delta = mean - self.mean
        self._scatter += (x - mean).T @ (x - mean) + torch.outer(delta, delta) * (self.count * len(x) / total)
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The unbiased estimate (size, size)."""
        if self.count < 2:
            raise ValueError(f"FeatureStatistics: a covariance takes at least 2 vectors, got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)` of Gaussians with means (d,), covariances (d, d).

    Covariances may be singular, as those of fewer vectors than dimensions are. The distance is defined then too, but
    as an estimate it is biased upwards, the more so the fewer vectors there are: compare only distances of as many.

    Example:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([3.0, 4.0]), 4 * torch.eye(2))
        27.0

    which is 3^2 + 4^2 + 2 (1 - 2)^2.
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        x.to(torch.float64) for x in (mean_a, covariance_a, mean_b, covariance_b)
    )
    # The last term's trace is the sum of the singular values of A^1/2 B^1/2: for singular matrices that is more exact
    # than the square roots of the eigenvalues of A^1/2 B A^1/2, which turn errors of 1e-16 into 1e-8.
    overlap = torch.linalg.svdvals(_square_root(covariance_a) @ _square_root(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(0.0, float(distance))  # rounding may leave a little less than nothing


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root (d, d) of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    # What is 0 but for rounding has a square root that isn't.
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > rounding, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T
