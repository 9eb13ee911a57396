"""Attention by PyTorch's SDPA, or by xformers on CUDA.

Causal queries are aligned with the end of the keys: query i of m attends to keys 0 .. n - m + i. So one function serves
a whole sequence (m = n) and a step after cached keys (m < n). SDPA's `is_causal` would align them at the start.

Shapes: b sequences, k heads, m queries, n keys, e width of a head, g futures of one past.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from world_model.transformer.cache import Segment

AttentionBackend = Literal["auto", "sdpa", "xformers"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """q (b, k, m, e), k and v (b, k, n, e) -> (b, k, m, e).

    Queries attend to all keys; with `causal`, to those not after them; with `mask`, bool and expandable to
    (b, k, m, n), where it is True. `auto` takes xformers on CUDA where it has a kernel for such tensors, outside
    compiled code.
    """
    if backend != "sdpa":
        seen = _xformers_attention(q, k, v, causal, mask, required=backend == "xformers")
        if seen is not None:
            return seen
    if causal and q.shape[2] < k.shape[2]:
        queries, keys = q.shape[2], k.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)
        causal = False
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def attention_over(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """`attention` over consecutive segments, the first of which may be the past of several rows."""
    if len(segments) == 1 and segments[0].keys.shape[0] == q.shape[0]:
        return attention(q, segments[0].keys, segments[0].values, causal=causal, mask=mask, backend=backend)
    queries, keys = q.shape[2], sum(segment.num_tokens() for segment in segments)
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)
    return product_attention(q, segments, mask=mask)


def product_attention(q: Tensor, segments: Sequence[Segment], *, mask: Tensor | None = None) -> Tensor:
    """`attention_over` by products of matrices."""
    q = q * q.shape[-1] ** -0.5
    parts = [_grouped_product(q, segment.keys.transpose(-1, -2)) for segment in segments]
    scores = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).split([segment.num_tokens() for segment in segments], dim=-1)
    seen = [_grouped_product(w, segment.values) for w, segment in zip(weights, segments, strict=True)]
    return torch.stack(seen).sum(0) if len(seen) > 1 else seen[0]


def _grouped_product(x: Tensor, y: Tensor) -> Tensor:
    """x (b g, k, m, i) @ y (b, k, i, j), where g rows of x share a row of y."""
    g = x.shape[0] // y.shape[0]
    product = rearrange(x, "(b g) k m i -> b k (g m) i", g=g) @ y
    return rearrange(product, "b k (g m) j -> (b g) k m j", g=g)


def _xformers_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, *, required: bool
) -> Tensor | None:
    """`attention` by xformers; unless it is required, None where it cannot run."""
    if required and not _on_cuda(q):
        raise ValueError(
            f"attention: xformers runs only on CUDA, got tensors on {q.device}; set attention to auto or sdpa."
        )
    ops = None if not required and (not _on_cuda(q) or torch.compiler.is_compiling()) else _xformers()
    if ops is None and required:
        raise ValueError(
            "attention: xformers is not installed; install the package's extra `xformers`, or set attention "
            "to auto or sdpa."
        )
    if ops is None:
        return None
    inputs = _inputs(ops, q, k, v, causal, mask)
    if not required and not _has_kernel(ops, inputs):
        return None
    seen = ops.memory_efficient_attention(inputs.query, inputs.key, inputs.value, attn_bias=inputs.attn_bias)
    return rearrange(seen, "b n k e -> b k n e")


def _on_cuda(q: Tensor) -> bool:
    return q.is_cuda


def _has_kernel(ops: Any, inputs: Any) -> bool:
    """Whether xformers can run on these inputs. A build for another PyTorch imports, but lacks kernels."""
    kinds = [ops.fmha.ALL_FW_OPS]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (inputs.query, inputs.key, inputs.value)):
        kinds.append(ops.fmha.ALL_BW_OPS)
    return all(any(kernel.supports(inputs) for kernel in kernels) for kernels in kinds)


def _inputs(ops: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Any:
    """xformers' `Inputs`: its layout is (b, m, k, e), and the mask becomes a bias."""
    bias = None
    if mask is not None:
        # xformers requires rows that begin at multiples of 8 elements.
        keys = k.shape[2]
        shape = (q.shape[0], q.shape[1], q.shape[2], keys)
        unaligned = torch.zeros(shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
        bias = F.pad(unaligned, (0, -keys % 8))[..., :keys]
    elif causal and q.shape[2] > 1:  # a single query attends to all keys
        bias = ops.fmha.attn_bias.LowerTriangularFromBottomRightMask()
    query, key, value = (rearrange(x, "b k n e -> b n k e") for x in (q, k, v))
    return ops.fmha.Inputs(query=query, key=key, value=value, attn_bias=bias)


@lru_cache(maxsize=1)
def _xformers() -> Any:
    """The module, or None where it is not installed. Imported at first use, since that takes long."""
    try:
        import xformers.ops
    except ImportError:
        return None
    return xformers.ops
