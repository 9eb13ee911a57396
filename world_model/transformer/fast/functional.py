"""The functions of `world_model.transformer.functional` for a CPU, with gradients written by hand.

On a CPU each elementwise operation is a pass over memory. These take about half the passes of automatic
differentiation, save fewer tensors for the backward pass, and lay out queries, keys and values for the
fastest attention. Without gradients they use as few calls as possible: for a few tokens, calls cost more than
arithmetic.

Shapes: b sequences, n tokens, d width, k heads, e width of a head, h hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vidtok_plugin.common import one_dnn
from world_model.transformer.functional import EPS
from world_model.transformer.rotary import Rotation

linear = one_dnn.linear
_EPS = {dtype: torch.tensor(EPS, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if torch.is_grad_enabled():
        normalised: Tensor = _RMSNorm.apply(x, weight)
        return normalised
    return x * inverse_rms(x) * weight


def queries_keys_values(qkv: Tensor, qk_scale: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    if qk_scale.dtype != qkv.dtype:
        qk_scale = qk_scale.to(qkv.dtype)
    if torch.is_grad_enabled():
        q, k, v = _QueriesKeysValues.apply(
            qkv, qk_scale.squeeze(1), rotation.cos.to(qkv.dtype), rotation.sin.to(qkv.dtype)
        )
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    qk, v = qkv.transpose(1, 3).split_with_sizes((2, 1), dim=2)
    q, k = rotation(qk * inverse_rms(qk) * qk_scale).unbind(2)
    return q, k, v.squeeze(2)


def swiglu(gate_value: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        gated: Tensor = _SwiGLU.apply(gate_value)
        return gated
    gate, value = gate_value.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def inverse_rms(x: Tensor) -> Tensor:
    """x (..., d) -> (..., 1). PyTorch's own norm takes twice the calls on a CPU."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_EPS[x.dtype], norm, norm, value=1 / x.shape[-1]).rsqrt()


def _over_heads(x: Tensor, heads: int) -> Tensor:
    """(..., e) -> (..., k, e), copied: products are faster over longer runs of memory than by broadcasting."""
    return x[..., None, :].expand(*x.shape[:-1], heads, -1).contiguous()


class _RMSNorm(torch.autograd.Function):
    """For x (..., d) and weight (d,); saves x as the only tensor of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = inverse_rms(x)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        product = (grad * x).flatten(0, -2)
        rows = scale.flatten()
        along = (product @ weight).mul_(rows**3).view(scale.shape)  # the part along x, which the norm removes
        grad_x = (grad * weight).mul_(scale).addcmul_(x, along, value=-1 / x.shape[-1])
        return grad_x, rows @ product


class _QueriesKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scale (2, e), cos and sin (n, e) -> three contiguous tensors (b, n, k, e)."""
        *queries_keys, values = qkv.unbind(2)
        half, heads, saved, rotated = qkv.shape[-1] // 2, qkv.shape[3], [], []
        wide_cos, wide_sin = _over_heads(cos, heads), _over_heads(sin, heads)
        for x, s in zip(queries_keys, scale, strict=True):
            inverse = inverse_rms(x)
            normal = x * inverse
            scaled = normal * _over_heads(s, heads)
            rotated.append((scaled * wide_cos).addcmul_(scaled.roll(half, dims=-1), wide_sin))
            saved += [normal, inverse]
        ctx.save_for_backward(scale, cos, sin, *saved)
        return rotated[0], rotated[1], values.contiguous()

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        scale, cos, sin, *saved = ctx.saved_tensors
        b, n, k, e = grads[0].shape
        cos, sin = _over_heads(cos, k), _over_heads(sin, k)
        grad_qkv, grad_scale = grads[0].new_empty(b, n, 3, k, e), torch.empty_like(scale)
        *grads_x, grad_v = grad_qkv.unbind(2)
        grad_v.copy_(grads[2])
        for i, grad_x in enumerate(grads_x):
            normal, inverse = saved[2 * i], saved[2 * i + 1]
            back = torch.addcmul(grads[i] * cos, grads[i].roll(e // 2, dims=-1), sin, value=-1)
            product = back * normal
            grad_scale[i] = product.flatten(0, 1).sum(0).sum(0)  # one sum over all three axes is slow
            along = (product @ scale[i])[..., None]  # the part along x, which the norm removes
            back.mul_(_over_heads(scale[i], k)).addcmul_(normal, along, value=-1 / e)
            torch.mul(back, inverse, out=grad_x)
        return grad_qkv, grad_scale, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_value)
        gate, value = gate_value.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> Tensor:
        (gate_value,) = ctx.saved_tensors
        (grad,) = grads
        gate, value = gate_value.chunk(2, dim=-1)
        grad_gate_value = torch.empty_like(gate_value)
        grad_gate, grad_value = grad_gate_value.chunk(2, dim=-1)
        activated = F.silu(gate)
        torch.mul(grad, activated, out=grad_value)
        torch.mul(grad, value, out=activated)
        torch.ops.aten.silu_backward(activated, gate, grad_input=grad_gate)
        return grad_gate_value
