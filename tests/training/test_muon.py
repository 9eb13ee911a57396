"""Muon updates a matrix as torch.optim.Muon does, and a kernel as a matrix."""

import pytest
import torch

from vidtok_plugin.training.muon import Muon


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_muon_updates_a_matrix_as_torchs_does(shape: tuple[int, int]) -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 256)[: shape[0] * shape[1]].view(shape)) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    one = Muon([{"params": [ours], "muon": True, **settings}], lr=0.02, bfloat16=True)
    other = torch.optim.Muon([theirs], **settings)
    for step in range(3):
        ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, torch.linspace(-1, 1, 256).view(shape))


def test_muon_updates_a_kernel_as_its_flattened_matrix() -> None:
    kernel, matrix = torch.nn.Parameter(torch.ones(4, 3, 2, 2)), torch.nn.Parameter(torch.ones(4, 12))
    kernel.grad = torch.randn(4, 3, 2, 2)
    matrix.grad = kernel.grad.reshape(4, 12)
    Muon([{"params": [kernel, matrix], "muon": True}], lr=0.02).step()
    assert torch.equal(kernel.view(4, 12), matrix)
    with pytest.raises(ValueError, match="2D"):  # else ours could be torch's
        torch.optim.Muon([kernel])
