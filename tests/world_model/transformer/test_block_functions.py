"""Gradients written by hand are those of the definitions, and products are the same however a weight is laid out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.transformer.block_functions import queries_keys_values, swiglu
from world_model.transformer.norm import rms_norm
from world_model.transformer.prepack import MOST_ROWS, prepack_linear
from world_model.transformer.rotary import Rotation, grid_rotation

B, N, HEADS, E = 2, 6, 3, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def over_slots() -> Rotation:
    return grid_rotation(N, 1, 1, E).over_slots().over_heads(HEADS)


def defined_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * weight


def defined_parts(qkv: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Pair by pair, as rotations of the plane."""
    rotation = over_slots()
    cos, sin = (table[:, 0, :, E // 2 :].double() for table in (rotation.cos, rotation.sin))  # (n, k, e / 2)
    turned = []
    for i in range(2):
        x, y = defined_norm(qkv[:, :, i], scale[i]).chunk(2, dim=-1)
        turned.append(torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1))
    return tuple(part.transpose(1, 2) for part in (*turned, qkv[:, :, 2]))


def defined_swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * value


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
    "norm": (rms_norm, defined_norm, (random(4, 5), random(5, seed=1))),
    "norm of three axes": (rms_norm, defined_norm, (random(2, 3, 5), random(5, seed=1))),
    "queries, keys, values": (
        lambda qkv, scale: queries_keys_values(qkv, scale, over_slots()),
        defined_parts,
        (random(B, N, 3, HEADS, E), random(2, E, seed=1)),
    ),
    "swiglu": (swiglu, defined_swiglu, (random(4, 6),)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_definition(name: str) -> None:
    function, definition, inputs = CASES[name]
    torch.testing.assert_close(function(*inputs), definition(*inputs))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_as_precise_under_autocast(name: str) -> None:
    """Lightning runs the backward pass under it too, where matrix products are of half precision."""
    function, _, inputs = CASES[name]
    leaves = [one.detach().float().requires_grad_() for one in inputs]

    def gradients() -> list[Tensor]:
        out = function(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        return list(torch.autograd.grad(sum(one.square().sum() for one in outs), leaves))

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients()
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_a_gradients_gradient_is_refused(name: str) -> None:
    function, _, inputs = CASES[name]
    out = function(*inputs)
    loss = (out[0] if isinstance(out, tuple) else out).square().sum()
    (gradient,) = torch.autograd.grad(loss, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_a_scale_of_zero_has_a_gradient() -> None:
    """It would be lost if the normalised values were read off the scaled ones."""
    qkv, scale = random(B, N, 3, HEADS, E), torch.zeros(2, E, dtype=torch.float64, requires_grad=True)
    q, k, _ = queries_keys_values(qkv, scale, over_slots())
    (q.sum() + k.sum()).backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None and scale.grad.abs().min() > 0


@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_near(name: str) -> None:
    function, _, inputs = CASES[name]
    half = function(*(x.detach().bfloat16() for x in inputs))
    exact = function(*(x.detach() for x in inputs))
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (half, exact)), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rows", [None, 1, 2, 3, 8, MOST_ROWS, MOST_ROWS + 1])
def test_products_are_the_same_however_a_weight_is_laid_out(rows: int | None) -> None:
    weight = torch.randn(12, 20)
    product = prepack_linear(weight, rows)
    for given in (rows or 5, 7):  # of other rows too
        x = torch.randn(given, 20)
        torch.testing.assert_close(product(x), x @ weight.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8])
def test_layouts_are_for_single_precision(rows: int) -> None:
    weight, x = torch.randn(12, 20, dtype=torch.float64), torch.randn(rows, 20, dtype=torch.float64)
    assert torch.equal(prepack_linear(weight, rows)(x), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert prepack_linear(weight.float(), rows)(x.float()).dtype == torch.bfloat16
