"""Components of any unit become comparable, and normalization can be undone."""

import pytest
import torch

from vidtok_plugin.common.normalization import Moments, Normalization


def fitted(values: torch.Tensor, batches: int = 3) -> Normalization:
    moments, normalization = Moments(values.shape[-1]), Normalization(values.shape[-1])
    for batch in values.chunk(batches):
        moments.add(batch)
    normalization.fit(moments)
    return normalization


def test_components_of_any_unit_get_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    values = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 100.0]) + torch.tensor([1.0, -5, 1e4])
    normalization = fitted(values)
    torch.testing.assert_close(normalization.mean.double(), values.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalization.scale.double(), values.std(0, correction=0), rtol=1e-5, atol=0)
    normalized = normalization(values.float())
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), rtol=0, atol=2e-3)
    torch.testing.assert_close(normalized.std(0), torch.ones(3), rtol=1e-2, atol=0)
    torch.testing.assert_close(normalization.undo(normalized), values.float())


def test_constant_components_are_only_shifted() -> None:
    """Float32 noise beside a large mean counts as constant, too; else it would become the largest of all."""
    noise = torch.tensor([1000.0, 1000.0001, 1000.0])
    normalization = fitted(torch.stack([torch.full((3,), 7.0), torch.zeros(3), noise], dim=-1))
    assert normalization.scale.tolist() == [1, 1, 1]
    assert normalization(torch.tensor([8.0, 0.5, 1000.0])).tolist() == pytest.approx([1, 0.5, 0], abs=1e-3)


def test_vectors_with_nan_do_not_count() -> None:
    moments = Moments(2)
    moments.add(torch.tensor([[1.0, 2.0], [float("nan"), 100.0], [3.0, 4.0]]))
    assert (moments.count, moments.mean.tolist(), moments.std.tolist()) == (2, [2, 3], [1, 1])


def test_statistics_stay_exact_in_a_model_of_another_precision() -> None:
    normalization = fitted(torch.tensor([[1000.1], [1000.3], [1000.2]]))
    before = normalization.mean.clone()
    model = torch.nn.Sequential(normalization, torch.nn.Linear(1, 1)).to(torch.bfloat16)
    assert model[1].weight.dtype == torch.bfloat16
    assert normalization.mean.dtype == torch.float32 and torch.equal(normalization.mean, before)
