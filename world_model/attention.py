"""Causal attention by the backend that the config chooses: PyTorch's SDPA, or xformers on CUDA.

Queries stand at the end of the keys: query i of m sees keys 0 .. n - m + i, so that one function serves a
whole sequence (m = n) and a step after cached keys (m < n), where SDPA's `is_causal` would align the two at
their beginning.

Shapes: b sequences, k heads, m queries, n keys, e width of a head.
"""

from functools import lru_cache
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

AttentionBackend = Literal["auto", "sdpa", "xformers"]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = "auto") -> Tensor:
    """q (b, k, m, e), k and v (b, k, n, e) -> (b, k, m, e). `auto` takes xformers on CUDA where it is
    installed."""
    if backend == "xformers" and not q.is_cuda:
        raise ValueError(
            f"attention: xformers runs on CUDA alone, got tensors on {q.device}; set attention to auto or sdpa."
        )
    if backend == "xformers" or (backend == "auto" and q.is_cuda and _xformers() is not None):
        return _xformers_attention(q, k, v)
    return _sdpa_attention(q, k, v)


def _sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    if queries == 1:
        return scaled_dot_product_attention(q, k, v)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = _xformers()
    if ops is None:
        raise ValueError(
            "attention: xformers is not installed; install the package's extra `xformers`, or set attention "
            "to auto or sdpa."
        )
    # Aligned at the end; a single query sees all keys.
    bias = ops.fmha.attn_bias.LowerTriangularFromBottomRightMask() if q.shape[2] > 1 else None
    q, k, v = (rearrange(x, "b k n e -> b n k e") for x in (q, k, v))
    return rearrange(ops.memory_efficient_attention(q, k, v, attn_bias=bias), "b n k e -> b k n e")


@lru_cache(maxsize=1)
def _xformers() -> Any:
    """The module, or None where it is not installed; looked up at first use, for it is heavy to import."""
    try:
        import xformers.ops
    except ImportError:
        return None
    return xformers.ops
