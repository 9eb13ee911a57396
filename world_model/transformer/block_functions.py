"""What a block computes between its matrix products, as functions whose gradients are written by hand.

For training on a CPU, where each operation is a pass over memory: they take about half the passes that automatic
differentiation does, keep less for the gradient, and lay out queries, keys and values as attention is fastest on.

Shapes: b sequences, n tokens, k heads, e width of a head, h hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from world_model.transformer.norm import inverse_rms, is_plain, rms_norm
from world_model.transformer.rotary import Rotation


def queries_keys_values(qkv: Tensor, qk_scale: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (b, n, 3, k, e) -> queries, keys and values (b, k, n, e), of which queries and keys are normalised, scaled by
    `qk_scale` (2, e) and turned by `rotation` (n, 1, k, e)."""
    if is_plain(qkv):
        cos, sin = (table[:, 0].to(qkv.dtype) for table in (rotation.cos, rotation.sin))
        parts = _QueriesKeysValues.apply(qkv, qk_scale, cos, sin)
    else:
        q_k, v = qkv.split([2, 1], dim=2)
        parts = (*rotation(rms_norm(q_k, qk_scale[:, None])).unbind(2), v.squeeze(2))
    q, k, v = (part.transpose(1, 2) for part in parts)
    return q, k, v


def swiglu(gate_value: Tensor) -> Tensor:
    """(..., 2 h) -> (..., h), `silu(gate) * value`."""
    if is_plain(gate_value):
        gated: Tensor = _SwiGLU.apply(gate_value)
        return gated
    gate, value = gate_value.chunk(2, dim=-1)
    return F.silu(gate) * value


class _QueriesKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scale (2, e), cos and sin (n, k, e) -> (b, n, k, e) each, in memory of its own."""
        *queries_keys, values = qkv.unbind(2)
        half, kept, turned = qkv.shape[-1] // 2, [], []
        for x, s in zip(queries_keys, scale, strict=True):
            inverse = inverse_rms(x)
            normal = x * inverse
            scaled = normal * _over_heads(s, normal)
            turned.append((scaled * cos).addcmul_(scaled.roll(half, dims=-1), sin))
            kept += [normal, inverse]
        ctx.save_for_backward(scale, cos, sin, *kept)
        return turned[0], turned[1], values.contiguous()

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        scale, cos, sin, *kept = ctx.saved_tensors
        b, n, k, e = grads[0].shape
        grad_qkv, grad_scale = grads[0].new_empty(b, n, 3, k, e), torch.empty_like(scale)
        *grads_x, grad_v = grad_qkv.unbind(2)
        grad_v.copy_(grads[2])
        for i, grad_x in enumerate(grads_x):
            normal, inverse = kept[2 * i], kept[2 * i + 1]
            back = torch.addcmul(grads[i] * cos, grads[i].roll(e // 2, dims=-1), sin, value=-1)
            product = back * normal
            grad_scale[i] = product.flatten(0, 1).sum(0).sum(0)  # one sum over all three axes is slow
            along = (product @ scale[i])[..., None]  # what the gradient would change the length by
            back.mul_(_over_heads(scale[i], back)).addcmul_(normal, along, value=-1 / e)
            torch.mul(back, inverse, out=grad_x)
        return grad_qkv, grad_scale, None, None


def _over_heads(x: Tensor, like: Tensor) -> Tensor:
    """x (e,) -> (k, e), for products with `like` (b, n, k, e): they are faster over longer stretches of memory."""
    return x.expand(like.shape[2:]).contiguous()


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
        through = F.silu(gate)
        torch.mul(grad, through, out=grad_value)
        torch.mul(grad, value, out=through)
        torch.ops.aten.silu_backward(through, gate, grad_input=grad_gate)
        return grad_gate_value
