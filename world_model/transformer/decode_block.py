"""A block's step for some tokens after those in a cache: what the block computes, in as few calls as can be.

A few tokens' arithmetic takes less time than the calls that order it. So weights are looked up once for many tokens,
nothing goes through a module or through einops, and tokens are rows.

Shapes: b sequences, m tokens of each, r = b * m rows, d width, k heads, e width of a head.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import silu

from world_model.transformer.attention import AttentionBackend, attention, attention_over
from world_model.transformer.cache import LayerCache, Placement, Segment
from world_model.transformer.norm import rms_norm
from world_model.transformer.prepack import Product
from world_model.transformer.rotary import Rotation


class DecodeBlock(NamedTuple):
    """A block's weights as they stand, and its share of a cache."""

    attention_norm: Tensor
    qkv: Product
    qk_scale: Tensor  # (2, 1, e)
    out: Product
    mlp_norm: Tensor
    gate_value: Product
    mlp_out: Product
    cache: LayerCache
    backend: AttentionBackend

    def __call__(self, x: Tensor, rotation: Rotation, at: Placement) -> Tensor:
        """x (r, d) -> (r, d), turned by `rotation` (m, 1, 1, e); it writes keys and values into the cache's buffers."""
        queries, own = self.prefill(x, rotation, at)
        if self.cache.shared:
            segments = (*self.cache.shared, own)
            seen = attention_over(queries, segments, causal=at.causal, mask=at.mask, backend=self.backend)
        else:
            seen = attention(queries, own.keys, own.values, causal=at.causal, mask=at.mask, backend=self.backend)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        gate, value = self.gate_value(rms_norm(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.mlp_out(silu(gate) * value)

    def prefill(self, x: Tensor, rotation: Rotation, at: Placement) -> tuple[Tensor, Segment]:
        """Write keys and values of x (r, d), turned by `rotation` (m, 1, 1, e); -> queries (b, k, m, e), and what they
        may see of the cache's own part."""
        cache = self.cache.own
        batch, heads, _, head_width = cache.keys.shape
        qkv = self.qkv(rms_norm(x, self.attention_norm)).view(batch, -1, 3, heads, head_width)
        q_k, values = qkv.split_with_sizes((2, 1), dim=2)
        queries, keys = rotation(rms_norm(q_k, self.qk_scale)).transpose(1, 3).unbind(2)  # (b, k, m, e)
        values = values.squeeze(2).transpose(1, 2)
        if queries.dtype != cache.keys.dtype:  # under autocast they are of another precision than the buffers
            queries, keys, values = (part.to(cache.keys.dtype) for part in (queries, keys, values))
        return queries, self.cache.write(keys, values, at)
