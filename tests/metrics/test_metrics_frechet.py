"""Frechet distances with known values, and FVD by a TorchScript file."""

from pathlib import Path

import pytest
import torch
from metric_networks import ToyI3D, save_torchscript
from torch import Tensor, nn

from vidtok_plugin.metrics.frechet import FeatureStatistics, frechet_distance
from vidtok_plugin.metrics.fvd import I3D, FrechetVideoDistance


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def approx(value: float | Tensor) -> object:
    return pytest.approx(float(value), rel=1e-10, abs=1e-10)


def test_equal_gaussians_have_distance_zero() -> None:
    x = torch.randn(50, 8, dtype=torch.float64)
    mean, covariance = x.mean(0), x.T.cov()
    assert frechet_distance(mean, covariance, mean, covariance) == approx(0)


def test_equal_covariances_give_the_squared_distance_of_means() -> None:
    covariance = rotation(3) @ torch.diag(torch.tensor([1.0, 2.0, 3.0]).double())
    covariance = covariance @ covariance.T
    a, b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 3.0, 3.0])
    assert frechet_distance(a, covariance, b, covariance) == approx(9)


def test_commuting_covariances() -> None:
    """They have common axes, each of which contributes (sigma_a - sigma_b)^2."""
    axes = rotation(4)
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([3.0, 2.0, 0.5, 0.0]).double()
    covariances = [axes @ torch.diag(sigma**2) @ axes.T for sigma in (a, b)]
    zero = torch.zeros(4)
    assert frechet_distance(zero, covariances[0], zero, covariances[1]) == approx((a - b).square().sum())


def test_covariances_that_do_not_commute() -> None:
    """In two dimensions the trace of the square root of AB is sqrt(tr AB + 2 sqrt(det AB))."""
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[5.0, -2.0], [-2.0, 1.0]], dtype=torch.float64)
    assert not torch.allclose(a @ b, b @ a)
    root = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    zero = torch.zeros(2)
    assert frechet_distance(zero, a, zero, b) == approx(a.trace() + b.trace() - 2 * root)


def test_singular_covariances() -> None:
    """For covariances u u^T and v v^T the distance is |u|^2 + |v|^2 - 2 |u v|."""
    u, v, zero = torch.randn(300, dtype=torch.float64), torch.randn(300, dtype=torch.float64), torch.zeros(300)
    distance = frechet_distance(zero, torch.outer(u, u), zero, torch.outer(v, v))
    assert distance == pytest.approx(float(u @ u + v @ v - 2 * (u @ v).abs()), rel=1e-9)
    assert frechet_distance(zero, torch.outer(u, u), zero, torch.zeros(300, 300)) == approx(u @ u)


def test_fewer_vectors_than_dimensions() -> None:
    """The distance to shifted vectors is the squared length of the shift."""
    features = torch.randn(5, 400)
    distance = FrechetVideoDistance()
    distance.update(torch.stack([features, features + 0.5]))
    assert distance.compute() == pytest.approx(400 * 0.25, rel=1e-6)  # of float32 features


def test_running_statistics_equal_those_of_all_vectors_also_far_from_zero() -> None:
    """Sums of squares would lose all digits of a variance of 1 at a mean of 1e9."""
    x = torch.randn(40, 6, dtype=torch.float64) + 1e9
    statistics = FeatureStatistics(6)
    for vectors in x.split([1, 0, 7, 32]):
        statistics.update(vectors)
    assert statistics.count == 40
    torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-15, atol=0.0)
    torch.testing.assert_close(statistics.covariance(), (x - 1e9).T.cov(), rtol=1e-6, atol=1e-6)


def test_statistics_need_at_least_two_vectors_of_the_right_size() -> None:
    statistics = FeatureStatistics(3)
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(2, 4\)"):
        statistics.update(torch.zeros(2, 4))
    statistics.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        statistics.covariance()
    with pytest.raises(ValueError, match="at least 2 clips, got 0"):
        FrechetVideoDistance().compute()


# I3D


def test_i3d_is_called_like_the_published_file(tmp_path: Path) -> None:
    """ToyI3D raises unless called with resize, without rescale and with return_features."""
    i3d = I3D(save_torchscript(ToyI3D(), tmp_path / "i3d.pt"))
    video = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    features = i3d(video)
    assert features.shape == (2, 6) and features.dtype == torch.float32
    torch.testing.assert_close(features[:, :3], video.mean((2, 3, 4)))
    with pytest.raises(ValueError, match=r"t >= 9, got \(1, 3, 8, 16, 16\)"):
        i3d(torch.zeros(1, 3, 8, 16, 16))


class NoArguments(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        return video.mean((2, 3, 4))


class NoVectors(nn.Module):
    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return video


def test_other_files_than_i3d_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file .*; fetch https"):
        I3D(tmp_path / "i3d.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt must be a TorchScript file"):
        I3D(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="must take the arguments .*it lacks rescale, resize, return_features"):
        I3D(save_torchscript(NoArguments(), tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"one vector per clip, \(1, d\), got \(1, 3, 9, 16, 16\)"):
        I3D(save_torchscript(NoVectors(), tmp_path / "maps.pt"))(torch.zeros(1, 3, 9, 16, 16))
