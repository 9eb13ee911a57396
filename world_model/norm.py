"""RMS normalisation, as the transformer's residual stream, queries and keys have it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
_EPS = torch.tensor(NORM_EPS, dtype=torch.float64)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`x / rms(x) * weight` over the last axis of x (..., d); the weight broadcasts, and is taken in the dtype of x.

    On a CPU PyTorch's own takes twice the operations, which is most of its time for few tokens.
    """
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if x.is_cpu and x.dtype in (torch.float32, torch.float64):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(_EPS, norm, norm, value=1 / x.shape[-1]).rsqrt() * weight
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps=NORM_EPS)
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight
