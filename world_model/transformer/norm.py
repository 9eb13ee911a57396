"""RMS normalisation, as the transformer's residual stream, queries and keys have it.

Shapes: d width, the last axis.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NORM_EPS = 1e-6
_EPS = {dtype: torch.tensor(NORM_EPS, dtype=dtype) for dtype in (torch.float32, torch.float64)}


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`x / rms(x) * weight` over the last axis of x (..., d); the weight broadcasts, and is taken in the dtype of x.

    On a CPU PyTorch's own takes twice the operations, which is most of its time for few tokens, and keeps more for its
    gradient.
    """
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if is_plain(x):
        if weight.ndim == 1 and torch.is_grad_enabled():
            normalised: Tensor = _RMSNorm.apply(x, weight)
            return normalised
        return x * inverse_rms(x) * weight
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps=NORM_EPS)
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight


def is_plain(x: Tensor) -> bool:
    """Whether x is computed with operation by operation, in its own precision: on a CPU, and not in half."""
    return x.is_cpu and x.dtype in _EPS


def inverse_rms(x: Tensor) -> Tensor:
    """x (..., d) -> (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_EPS[x.dtype], norm, norm, value=1 / x.shape[-1]).rsqrt()


class _RMSNorm(torch.autograd.Function):
    """For x (..., d) and weight (d,); of the size of x it keeps x alone."""

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
        along = (product @ weight).mul_(rows**3).view(scale.shape)  # what the gradient would change the length by
        grad_x = (grad * weight).mul_(scale).addcmul_(x, along, value=-1 / x.shape[-1])
        return grad_x, rows @ product
