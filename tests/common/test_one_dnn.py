"""Products by oneDNN are PyTorch's own, with their gradients, and PyTorch's where oneDNN's gain nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vidtok_plugin import reference_path
from vidtok_plugin.common import one_dnn
from vidtok_plugin.tokenizer.network.fast.steps import whole
from vidtok_plugin.tokenizer.network.resampling import SpatialUpsample


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The sizes of what is multiplied by oneDNN, on a processor that is faster by it."""
    if not one_dnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(one_dnn, "is_faster", lambda: True)
    seen: list[torch.Size] = []
    product = one_dnn.product

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(x.shape)
        return product(x, weight)

    monkeypatch.setattr(one_dnn, "product", counted)
    return seen


def with_gradients(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> list[Tensor]:
    x, weight = (tensor.detach().requires_grad_() for tensor in (x, weight))
    y = function(x, weight)
    y.square().sum().backward()
    assert x.grad is not None and weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("rows", [(1,), (3, 5), (0, 4), (2, 3, 70)])
def test_a_linear_layer_and_its_gradients_are_pytorchs(products: list[torch.Size], rows: tuple[int, ...]) -> None:
    x, weight = torch.randn(*rows, 12), torch.randn(7, 12)
    got, right = (with_gradients(function, x, weight) for function in (one_dnn.linear, F.linear))
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert len(products) == 3
    torch.testing.assert_close(one_dnn.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert len(products) == 4


def test_views_are_multiplied_as_they_are_seen(products: list[torch.Size]) -> None:
    x, weight = torch.randn(11, 9).t()[::2], torch.randn(12, 14).t()[:7, 1:]
    torch.testing.assert_close(one_dnn.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert products == [(5, 11)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_pytorch(products: list[torch.Size], dtype: torch.dtype) -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert torch.equal(one_dnn.linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        assert one_dnn.linear(x, weight).dtype == torch.bfloat16
    assert not products


def test_a_decoder_upsamples_by_one_dnn(products: list[torch.Size]) -> None:
    layer, x = SpatialUpsample(6), torch.randn(2, 3, 4, 5, 6)
    with torch.no_grad():
        fast = whole(layer, x)
        assert products == [(120, 6)]
        with reference_path():
            torch.testing.assert_close(fast, layer(x), rtol=1e-5, atol=1e-5)
