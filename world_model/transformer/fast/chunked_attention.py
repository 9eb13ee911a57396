"""Causal attention in training on a CPU, by matrix products over chunks of queries.

PyTorch's own kernel for CPUs takes 1.5 times as long in float32 and 2.7 times in bfloat16, forward and backward
(512 positions). A chunk skips the keys after its last query, which is half of the arithmetic of a whole product.

Shapes: b sequences, k heads, n positions, e width of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidtok_plugin.common import one_dnn

CHUNK = 128  # queries
ONE_DNN_CHUNK = 256  # queries, where each chunk of a head is a product of its own
# Added to the scores of a chunk's queries for its own keys: -inf for those after each query.
_LATER = torch.full((ONE_DNN_CHUNK, ONE_DNN_CHUNK), float("-inf"), device="cpu").triu(1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k and v (b, k, n, e) -> (b, k, n, e): each position attends to itself and those before it."""
    if one_dnn.multiplies(q):
        attended: Tensor = _CausalAttention.apply(q, k, v)
        return attended
    queries = (q * q.shape[-1] ** -0.5).split(CHUNK, dim=2)
    seen, end = [], 0
    for chunk in queries:
        start, end = end, end + chunk.shape[2]
        scores = chunk @ k[:, :, :end].transpose(-1, -2)
        with torch.no_grad():  # in place, since a constant changes no gradient
            scores[..., start:] += _LATER[: end - start, : end - start].to(scores.dtype)
        seen.append(scores.softmax(-1) @ v[:, :, :end])
    return torch.cat(seen, dim=2)


class _CausalAttention(torch.autograd.Function):
    """By oneDNN, which multiplies two matrices at a time: head by head, whose chunks stay in the cache."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [(x * x.shape[-1] ** -0.5 if x is q else x).contiguous() for x in (q, k, v)]
        seen, weights = _by_position(q), []
        for query, key, value, out in _by_head(*heads, seen):
            for start, end in _chunks(q.shape[2]):
                scores = one_dnn.product(query[start:end], key[:end])
                scores[:, start:].add_(_LATER[: end - start, : end - start])
                weights.append(scores.softmax(-1))
                out[start:end] = one_dnn.product(weights[-1], value[:end].t())
        ctx.save_for_backward(*heads, *weights)
        return seen

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *saved = ctx.saved_tensors
        grad, weights = grads[0].contiguous(), iter(saved)
        grad_q, grad_k, grad_v = (_by_position(q) for _ in range(3))
        for query, key, value, upstream, out_q, out_k, out_v in _by_head(q, k, v, grad, grad_q, grad_k, grad_v):
            turned_k, turned_v = q.new_zeros(2, q.shape[3], q.shape[2])  # (e, n): a copy of queries, none of weights
            for start, end in _chunks(q.shape[2]):
                weight, back = next(weights), upstream[start:end]
                turned_v[:, :end] += one_dnn.product(back.t(), weight.t())
                scores = torch.ops.aten._softmax_backward_data(
                    one_dnn.product(back, value[:end]), weight, -1, weight.dtype
                )
                out_q[start:end] = one_dnn.product(scores, key[:end].t())
                turned_k[:, :end] += one_dnn.product(query[start:end].t(), scores.t())
            out_k.copy_(turned_k.t())
            out_v.copy_(turned_v.t())
        return grad_q.mul_(q.shape[-1] ** -0.5), grad_k, grad_v


def _by_position(like: Tensor) -> Tensor:
    """Room for (b, k, n, e), laid out as (b, n, k, e), as the next product reads it."""
    b, k, n, e = like.shape
    return like.new_empty(b, n, k, e).transpose(1, 2)


def _by_head(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The views (n, e) of each head of tensors (b, k, n, e)."""
    for sequence in zip(*(x.unbind(0) for x in tensors), strict=True):
        yield from zip(*(x.unbind(0) for x in sequence), strict=True)


def _chunks(n: int) -> Iterator[tuple[int, int]]:
    """Where each chunk of queries starts and ends."""
    for start in range(0, n, ONE_DNN_CHUNK):
        yield start, min(start + ONE_DNN_CHUNK, n)
