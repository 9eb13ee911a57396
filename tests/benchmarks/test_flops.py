"""The counter of operations covers the CPU-only variants of PyTorch's operations."""

import pytest
import torch
from flops import flop_counter
from torch.nn import functional as F

from world_model.transformer.fast.prepack import prepack_linear


def test_attention_on_a_cpu_is_counted_forward_and_backward() -> None:
    """PyTorch's own counter gives 0."""
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    k, v = torch.randn(2, 2, 4, 32, 16, requires_grad=True).unbind()
    product = 2 * 2 * 4 * 8 * 32 * 16  # of all queries with all keys, or of the weights with the values
    with flop_counter() as counter:
        seen = F.scaled_dot_product_attention(q, k, v)
    assert counter.get_total_flops() == 2 * product
    with flop_counter() as counter:
        seen.sum().backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 5 * product  # it computes the scores again


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_products_are_counted_however_the_weight_is_laid_out(rows: int) -> None:
    product = prepack_linear(torch.randn(8, 16), rows)
    with flop_counter() as counter:
        product(torch.randn(rows, 16))
    assert counter.get_total_flops() == 2 * rows * 16 * 8


def test_products_with_vectors_are_counted() -> None:
    with flop_counter() as counter:
        _ = torch.randn(8, 16) @ torch.randn(16)
    assert counter.get_total_flops() == 2 * 16 * 8
