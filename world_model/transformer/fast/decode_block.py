"""`DecodeBlock` in as few calls as possible.

The arithmetic of a few tokens takes less time than the calls that start it, on any device. So weights are looked up
once for many steps, nothing goes through a module or through einops, and products are of matrices.

Shapes: b sequences, m tokens of each, r = b * m rows, d width, k heads, e width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.transformer.attention import AttentionBackend, attention_over, product_attention
from world_model.transformer.block import Block
from world_model.transformer.cache import LayerCache, Placement, Segment
from world_model.transformer.fast.choice import functions, multiplies_attention
from world_model.transformer.fast.chunked_attention import causal_attention
from world_model.transformer.fast.prepack import Product, Rows, prepack_linear
from world_model.transformer.rotary import Rotation


@dataclass(eq=False)  # not frozen: torch 2.9 and 2.10 do not compile calls of frozen ones
class FlatDecodeBlock:
    """A block's weights, and one layer of a cache. Its calls are those of `DecodeBlock`."""

    attention_norm: Tensor
    qkv: Product
    qk_scale: Tensor  # (2, 1, e)
    out: Product
    mlp_norm: Tensor
    gate_value: Product
    mlp_out: Product
    cache: LayerCache
    backend: AttentionBackend

    @classmethod
    def of(cls, block: Block, cache: LayerCache, rows: Rows | None) -> "FlatDecodeBlock":
        """With `rows`, weights are prepacked for steps of that many tokens in all."""
        return cls(
            attention_norm=block.attention_norm.weight,
            qkv=prepack_linear(block.attention.qkv.weight, rows),
            qk_scale=block.attention.qk_scale.view(2, 1, -1),
            out=prepack_linear(block.attention.out.weight, rows),
            mlp_norm=block.mlp_norm.weight,
            gate_value=prepack_linear(block.mlp.gate_value.weight, rows),
            mlp_out=prepack_linear(block.mlp.out.weight, rows),
            cache=cache,
            backend=block.attention.backend,
        )

    def __call__(self, rows: Tensor, rotation: Rotation, at: Placement) -> Tensor:
        seen = self._attended(*self._write(rows, rotation, at), at)
        rows = rows + self.out(seen.transpose(1, 2).reshape(rows.shape))
        gate_value = self.gate_value(functions(rows).rms_norm(rows, self.mlp_norm))
        return rows + self.mlp_out(functions(gate_value).swiglu(gate_value))

    def prefill(self, rows: Tensor, rotation: Rotation, at: Placement) -> None:
        self._write(rows, rotation, at)

    def _attended(self, queries: Tensor, segments: tuple[Segment, ...], at: Placement) -> Tensor:
        """What queries (b, k, m, e) see of the segments, (b, k, m, e)."""
        if self.backend == "sdpa" or not multiplies_attention(queries):
            return attention_over(queries, segments, causal=at.causal, mask=at.mask, backend=self.backend)
        if at.causal and len(segments) == 1 and queries.shape[2] == at.end:
            return causal_attention(queries, segments[0].keys, segments[0].values)
        if at.causal:
            return attention_over(queries, segments, causal=True, backend=self.backend)
        # Products of bfloat16 copy a slice of a buffer first: reading the whole buffer takes a fifth of the time.
        buffers = (*segments[:-1], self.cache.own)
        mask = _mask_of_buffers(at, sum(segment.num_tokens() for segment in buffers), queries.device)
        return product_attention(queries, buffers, mask=mask)

    def _write(self, rows: Tensor, rotation: Rotation, at: Placement) -> tuple[Tensor, tuple[Segment, ...]]:
        """Write keys and values of (r, d); -> queries (b, k, m, e), and the segments that they attend to."""
        b, heads, _, head_width = self.cache.own.keys.shape
        qkv = self.qkv(functions(rows).rms_norm(rows, self.attention_norm)).view(b, -1, 3, heads, head_width)
        queries, keys, values = functions(qkv).queries_keys_values(qkv, self.qk_scale, rotation)
        if queries.dtype != self.cache.own.keys.dtype:  # autocast makes them half precision
            queries, keys, values = (part.to(self.cache.own.keys.dtype) for part in (queries, keys, values))
        return queries, self.cache.write(keys, values, at)


def _mask_of_buffers(at: Placement, length: int, device: torch.device) -> Tensor:
    """The mask of `at` for buffers of `length` positions, of which those from `at.end` on hold nothing yet."""
    if at.mask is not None:
        return F.pad(at.mask, (0, length - at.end), value=False)
    return (torch.arange(length, device=device) < at.end)[None]
