"""The operations of a block between its matrix products, as they are defined.

`fast/functional.py` has the same functions for a CPU, and `fast/choice.py` picks between the two.

Shapes: b sequences, n tokens, d width, k heads, e width of a head, h hidden width.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from world_model.transformer.rotary import Rotation

EPS = 1e-6


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., i) and a weight (o, i) -> (..., o)."""
    return F.linear(x, weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`x / rms(x) * weight`, x (..., d) and weight (d,), in the dtype of x (Zhang and Sennrich, arXiv 1910.07467)."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps=EPS)


def queries_keys_values(qkv: Tensor, qk_scale: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (b, n, 3, k, e) -> queries, keys and values (b, k, n, e). Queries and keys are normalised, scaled by
    `qk_scale` (2, 1, e), and rotated by the angles of their n positions."""
    qk, v = rearrange(qkv, "b n three k e -> b k three n e").split([2, 1], dim=2)
    qk = F.rms_norm(qk, qk.shape[-1:], eps=EPS) * qk_scale.to(qk.dtype)
    q, k = rotation(qk).unbind(2)
    return q, k, v.squeeze(2)


def swiglu(gate_value: Tensor) -> Tensor:
    """(..., 2 h) -> (..., h): `silu(gate) * value`."""
    gate, value = torch.chunk(gate_value, 2, dim=-1)
    return F.silu(gate) * value
