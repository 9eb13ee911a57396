"""All blocks for many steps in float32 on a CPU, with weights that oneDNN has laid out once.

A token reads every weight, which takes most of its time. The rest is the number of PyTorch calls, each of which finds
its code and data out of the caches. So what layers have in common is looked up once for all of them, and the scales of
queries and keys are multiplied into the rotation.

Shapes: l layers, b sequences, m tokens of each, r = b * m rows, d width, k heads, e width of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidtok_plugin.common import one_dnn
from world_model.transformer.attention import attention_over
from world_model.transformer.block import Block
from world_model.transformer.cache import Placement, Segment, TransformerCache
from world_model.transformer.fast.functional import inverse_rms, rms_norm, swiglu
from world_model.transformer.fast.prepack import prepack_linear
from world_model.transformer.rotary import Rotation


class PackedWeights(NamedTuple):
    """A block's weights for products, as `prints` tell them."""

    qkv: one_dnn.Product
    out: one_dnn.Product
    gate_value: one_dnn.Product
    mlp_out: one_dnn.Product
    prints: list[Tensor]


# Laying out takes as long as dozens of calls, so it is done once for all rollouts of a model.
_PACKED: WeakKeyDictionary[Block, PackedWeights] = WeakKeyDictionary()


def packed_weights(block: Block) -> PackedWeights:
    """The block's weights as they are now, laid out before if they have not changed since."""
    weights = [
        linear.weight for linear in (block.attention.qkv, block.attention.out, block.mlp.gate_value, block.mlp.out)
    ]
    prints, packed = [_print(weight) for weight in weights], _PACKED.get(block)
    if packed is None or not all(map(torch.equal, prints, packed.prints)):
        qkv, out, gate_value, mlp_out = (prepack_linear(weight, "varied") for weight in weights)
        packed = PackedWeights(qkv=qkv, out=out, gate_value=gate_value, mlp_out=mlp_out, prints=prints)
        _PACKED[block] = packed
    return packed


def _print(weight: Tensor) -> Tensor:
    """A product with a random vector, which tells a changed weight in a tenth of the time of laying it out. A version
    counter would miss changes through `.data`, as by weight averaging."""
    generator = torch.Generator().manual_seed(0)
    return weight @ torch.randn(weight.shape[-1], generator=generator)


class PackedBlocks:
    """The blocks, and the cache that their steps go into. Its calls are those of one `DecodeBlock` after the other."""

    @torch.no_grad()
    def __init__(self, blocks: Sequence[Block], cache: TransformerCache) -> None:
        self.own, self.shared = cache.own, [layer.shared for layer in cache.layers()]
        self.before = sum(segment.num_tokens() for segment in cache.shared)
        self.backend = blocks[0].attention.backend
        self.norms = [(block.attention_norm.weight.detach(), block.mlp_norm.weight.detach()) for block in blocks]
        self.weights = [packed_weights(block) for block in blocks]
        scales = torch.stack([block.attention.qk_scale.view(2, 1, -1) for block in blocks])
        self.scales = scales  # (l, 2, 1, e), of queries and keys
        self.rolled_scales = scales.roll(scales.shape[-1] // 2, dims=-1)

    @torch.no_grad()
    def __call__(self, rows: Tensor, rotation: Rotation, at: Placement) -> Tensor:
        """(r, d) -> (r, d)."""
        b, heads, _, head_width = self.own.keys.shape[1:]
        half = head_width // 2
        cosines, sines = (rotation.cos * self.scales).unbind(0), (rotation.sin * self.rolled_scales).unbind(0)
        keys, values = self._places(at)
        positions = None if isinstance(at.positions, slice) else at.positions - self.before
        segments = self._segments(at)
        for i, ((attention_norm, mlp_norm), (qkv, out, gate_value, mlp_out, _)) in enumerate(
            zip(self.norms, self.weights, strict=True)
        ):
            parts = qkv(rms_norm(rows, attention_norm)).view(b, -1, 3, heads, head_width).transpose(1, 3)
            both, v = parts.split_with_sizes((2, 1), dim=2)
            both = both * inverse_rms(both)
            q, k = (both * cosines[i]).addcmul_(both.roll(half, dims=-1), sines[i]).unbind(2)
            if positions is None:
                keys[i].copy_(k)
                values[i].copy_(v)
            else:
                keys[i].index_copy_(2, positions, k)
                values[i].index_copy_(3, positions, v)
            seen = attention_over(q, segments[i], causal=at.causal, mask=at.mask, backend=self.backend)
            rows = rows + out(seen.transpose(1, 2).reshape(rows.shape))
            rows = rows + mlp_out(swiglu(gate_value(rms_norm(rows, mlp_norm))))
        return rows

    def _places(self, at: Placement) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Where each layer's keys (b, k, ., e) and values (b, k, 1, ., e) are written: its buffers, or for a slice of
        positions a part of them."""
        keys, values = self.own
        if isinstance(at.positions, slice):
            start, count = at.positions.start - self.before, at.positions.stop - at.positions.start
            keys, values = keys.narrow(3, start, count), values.narrow(3, start, count)
        return keys.unbind(0), values.unsqueeze(3).unbind(0)

    def _segments(self, at: Placement) -> list[tuple[Segment, ...]]:
        """What each layer's queries attend to."""
        end = at.end - self.before
        seen = zip(self.own.keys.narrow(3, 0, end).unbind(0), self.own.values.narrow(3, 0, end).unbind(0), strict=True)
        return [(*shared, Segment(*held)) for shared, held in zip(self.shared, seen, strict=True)]
