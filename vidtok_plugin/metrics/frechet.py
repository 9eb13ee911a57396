"""The Frechet distance between Gaussians fitted to two sets of feature vectors (Dowson and Landau 1982)."""

import torch
from torch import Tensor


class FeatureStatistics:
    """Running mean and covariance of feature vectors, in float64; the vectors are not kept.

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
        """Adds n >= 0 vectors (n, size)."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"FeatureStatistics: features must have the shape (n, {len(self.mean)}), got {tuple(features.shape)}."
            )
        if not len(features):
            return
        # Deviations from the mean, not sums of squares, which lose precision for features far from 0 (Chan et al.).
        x = features.detach().to("cpu", torch.float64)
        mean, total = x.mean(0), self.count + len(x)
        delta = mean - self.mean
        self._scatter += (x - mean).T @ (x - mean) + torch.outer(delta, delta) * (self.count * len(x) / total)
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The unbiased covariance (size, size)."""
        if self.count < 2:
            raise ValueError(f"FeatureStatistics: a covariance needs at least 2 vectors, got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)` of Gaussians with means (d,) and covariances (d, d).

    Covariances may be singular, as with fewer vectors than dimensions. As an estimate the distance is biased upwards,
    more so for fewer vectors: only compare distances over the same number of vectors.

    Example:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([3.0, 4.0]), 4 * torch.eye(2))
        27.0

    This is 3^2 + 4^2 + 2 (1 - 2)^2.
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        x.to(torch.float64) for x in (mean_a, covariance_a, mean_b, covariance_b)
    )
    # The trace of the last term is the sum of the singular values of A^1/2 B^1/2. For singular matrices this is more
    # accurate than square roots of the eigenvalues of A^1/2 B A^1/2, which turn errors of 1e-16 into 1e-8.
    overlap = torch.linalg.svdvals(_square_root(covariance_a) @ _square_root(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(0.0, float(distance))  # rounding may give a small negative value


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root (d, d) of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    # The square root would amplify eigenvalues that are 0 up to rounding.
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > rounding, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T
