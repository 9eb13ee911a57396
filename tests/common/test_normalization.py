"""Normalization can be undone, and its statistics stay exact."""

import torch

from vidtok_plugin.common.normalization import Normalization


def fitted() -> Normalization:
    normalization = Normalization(2)
    normalization.set_statistics(torch.tensor([1000.1, -5.0]), torch.tensor([1e-3, 100.0]))
    return normalization


def test_normalization_can_be_undone() -> None:
    values = torch.tensor([[1000.102, 95.0], [1000.1, -5.0]])
    normalized = fitted()(values)
    torch.testing.assert_close(normalized, torch.tensor([[2.0, 1.0], [0.0, 0.0]]), rtol=0, atol=0.05)
    torch.testing.assert_close(fitted().undo(normalized), values)


def test_statistics_stay_exact_in_a_model_of_another_precision() -> None:
    normalization = fitted()
    before = normalization.mean.clone()
    model = torch.nn.Sequential(normalization, torch.nn.Linear(2, 1)).to(torch.bfloat16)
    assert model[1].weight.dtype == torch.bfloat16
    assert normalization.mean.dtype == torch.float32 and torch.equal(normalization.mean, before)
