"""The transformer: blocks and a last norm, over whole sequences or step by step with a cache.

The cache belongs to the caller, and `Transformer.step` and `prefill` alone advance its position.

Shapes: b sequences, n tokens, m new ones, d width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from world_model.transformer.block import Block, DecodeBlock, RMSNorm, TransformerConfig
from world_model.transformer.cache import Placement, Segment, TransformerCache
from world_model.transformer.fast.choice import decodes_flat, decodes_packed
from world_model.transformer.fast.decode_block import FlatDecodeBlock
from world_model.transformer.fast.packed_blocks import PackedBlocks
from world_model.transformer.fast.prepack import Rows
from world_model.transformer.rotary import Rotation

DecodeBlocks = Sequence[DecodeBlock] | Sequence[FlatDecodeBlock] | PackedBlocks


class Transformer(nn.Module):
    """Blocks and a last norm. `rotation` has the angles of the positions that tokens may have."""

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, cfg: TransformerConfig, rotation: Rotation) -> None:
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.norm = RMSNorm(cfg.width)
        self.register_buffer("rotary_cos", rotation.cos, persistent=False)  # (n, e)
        self.register_buffer("rotary_sin", rotation.sin, persistent=False)
        self._init_weights()

    @property
    def rotation(self) -> Rotation:
        return Rotation(self.rotary_cos, self.rotary_sin)

    def _init_weights(self) -> None:
        """Variance-preserving, with the last projection of each branch at zero: every block starts as the identity."""
        for block in self._blocks():
            for linear in (block.attention.qkv, block.mlp.gate_value):
                nn.init.normal_(linear.weight, std=self.cfg.width**-0.5)
            for linear in (block.attention.out, block.mlp.out):
                nn.init.zeros_(linear.weight)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        needed: int | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """(b, n, d) -> (b, needed, d), of the last tokens; of all n by default.

        By default tokens have the positions 0 .. n-1 and attend to those before them. `positions` (n,) and `mask`
        (n, n) bool, True where a token may attend, override these. `rotation` is that of more positions than the
        transformer's own.
        """
        n = x.shape[1]
        rotation = (rotation or self.rotation).at(slice(0, n) if positions is None else positions)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, rotation, mask, n)
        return self.norm(last(x, rotation, mask, n if needed is None else needed))

    def decode_blocks(self, cache: TransformerCache, rows: Rows | None = None) -> DecodeBlocks:
        """The blocks with their layers of the cache, for many calls of `step` with the same buffers and weights.

        With `rows`, weights are prepacked for steps of that many tokens in all, and later changes of them are ignored.
        """
        if rows is not None and decodes_packed(cache.own.keys, self.norm.weight):
            return PackedBlocks(self._blocks(), cache)
        return self._layer_blocks(cache, rows)

    def _layer_blocks(
        self, cache: TransformerCache, rows: Rows | None = None
    ) -> Sequence[DecodeBlock] | Sequence[FlatDecodeBlock]:
        pairs = list(zip(self._blocks(), cache.layers(), strict=True))
        if decodes_flat():
            return [FlatDecodeBlock.of(block, layer, rows) for block, layer in pairs]
        return [DecodeBlock(block, layer) for block, layer in pairs]

    def step(
        self,
        x: Tensor,
        cache: TransformerCache,
        at: Placement | None = None,
        blocks: DecodeBlocks | None = None,
    ) -> tuple[Tensor, TransformerCache]:
        """Output (b, m, d) for tokens (b, m, d) that follow those in the cache, and the cache with them.

        With `at` they are placed elsewhere in the cache's buffers, and its length stays; call `advanced` then.
        `blocks` are the cache's `decode_blocks`, made here unless given.
        """
        if blocks is None or not decodes_flat():
            blocks = self.decode_blocks(cache)
        elif _own(blocks).storage != cache.own.storage:
            raise ValueError(
                "Transformer: blocks must be the decode_blocks of the cache that is given, not of another."
            )
        here, rotation = self._place(x, cache, at)
        rows = x.flatten(0, 1)
        if isinstance(blocks, PackedBlocks):
            rows = blocks(rows, rotation, here)
        else:
            for block in blocks:
                rows = block(rows, rotation, here)
        return self.norm(rows).view(x.shape), cache.advanced(x.shape[1]) if at is None else cache

    def prefill(self, x: Tensor, cache: TransformerCache, at: Placement | None = None) -> TransformerCache:
        """Appends keys and values of tokens (b, m, d), and skips the last layer's output; returns the longer cache.

        Unlike `step`, it advances the cache also with `at`.
        """
        here, rotation = self._place(x, cache, at)
        *blocks, last = self._layer_blocks(cache)
        rows = x.flatten(0, 1)
        for block in blocks:
            rows = block(rows, rotation, here)
        last.prefill(rows, rotation, here)
        return cache.advanced(x.shape[1])

    def init_cache(
        self,
        batch: int,
        capacity: int,
        begin: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TransformerCache:
        """An empty cache. The first `begin` (b,) tokens of each row are padding, which no others attend to."""
        return TransformerCache.empty(
            layers=self.cfg.depth,
            batch=batch,
            heads=self.cfg.heads,
            capacity=capacity,
            head_width=self.cfg.head_width,
            begin=begin,
            device=device,
            dtype=dtype,
        )

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _place(self, x: Tensor, cache: TransformerCache, at: Placement | None) -> tuple[Placement, Rotation]:
        """The placement of tokens in the cache, and the rotation at their positions."""
        if len(x) != cache.batch:
            raise ValueError(f"Transformer: there must be a row for each of the cache's {cache.batch}, got {len(x)}.")
        if at is None:
            cache.check_room(x.shape[1])
        here = cache.next(x.shape[1]) if at is None else at
        if cache.begin is not None:
            here = here.since(cache.begin)
        rotation = self.rotation if cache.rotation is None else cache.rotation
        return here, rotation.at(here.positions)


def _own(blocks: DecodeBlocks) -> Segment:
    """The buffers that blocks write into."""
    return blocks.own if isinstance(blocks, PackedBlocks) else blocks[0].cache.own
