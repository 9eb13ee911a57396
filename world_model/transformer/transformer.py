"""The transformer: pre-norm blocks of RMSNorm, attention with QK-norm and rotary positions, and SwiGLU.

`forward` takes a whole sequence; `step` some tokens after those in a cache, with the same result. The
cache belongs to the caller, and `Transformer.step` alone advances its position.

Shapes: b sequences, n tokens, r = b * n rows, d width, k heads, e width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model.transformer.attention import AttentionBackend, attention
from world_model.transformer.block_functions import queries_keys_values, swiglu
from world_model.transformer.cache import LayerCache, Placement, TransformerCache
from world_model.transformer.decode_block import DecodeBlock
from world_model.transformer.norm import RMSNorm
from world_model.transformer.prepack import prepack_linear
from world_model.transformer.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer. `attention`: `auto` is xformers on CUDA where it has a kernel, else
    PyTorch's SDPA."""

    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 2.67
    dropout: float = 0.0
    attention: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"TransformerConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.width % self.heads or self.head_width % 2 or self.head_width < 6:
            raise ValueError(
                "TransformerConfig: width must be heads times an even number of at least 6, got width "
                f"{self.width} for {self.heads} heads."
            )
        if self.mlp_ratio <= 0:
            raise ValueError(f"TransformerConfig: mlp_ratio must be positive, got {self.mlp_ratio}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"TransformerConfig: dropout must be in [0, 1), got {self.dropout}.")
        if self.attention not in ("auto", "sdpa", "xformers"):
            raise ValueError(f"TransformerConfig: attention must be auto, sdpa or xformers, got {self.attention!r}.")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU, a multiple of 8."""
        return max(8, round(self.mlp_ratio * self.width / 8) * 8)


class Attention(nn.Module):
    """Self-attention; queries and keys are normalised before they are turned by their positions."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.backend: AttentionBackend = cfg.attention
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(2 * cfg.head_width))  # of queries, of keys
        self.out = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(self, x: Tensor, batch: int, rotation: Rotation, mask: Tensor | None, needed: int) -> Tensor:
        """x (b * n, d) -> (b * needed, d), of the last tokens; causal without a mask (n, n)."""
        qkv = rearrange(self.qkv(x), "(b n) (three k e) -> b n three k e", b=batch, three=3, k=self.heads)
        q, k, v = queries_keys_values(qkv, self.qk_scale.view(2, -1), rotation)
        if mask is not None:  # SDPA is faster for all queries than for some of them by a mask
            q, mask = q[:, :, q.shape[2] - needed :], mask[len(mask) - needed :]
        seen = attention(q, k, v, causal=mask is None, mask=mask, backend=self.backend)
        return self.out(rearrange(seen[:, :, seen.shape[2] - needed :], "b k n e -> (b n) (k e)"))


class SwiGLU(nn.Module):
    """`out(silu(gate(x)) * value(x))` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.gate_value = nn.Linear(cfg.width, 2 * cfg.mlp_width, bias=False)
        self.out = nn.Linear(cfg.mlp_width, cfg.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(swiglu(self.gate_value(x)))


class Block(nn.Module):
    """Attention and SwiGLU, each on the normalised residual stream."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(cfg.width)
        self.attention = Attention(cfg)
        self.mlp_norm = RMSNorm(cfg.width)
        self.mlp = SwiGLU(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor, batch: int, rotation: Rotation, mask: Tensor | None, needed: int) -> Tensor:
        """x (b * n, d) -> (b * needed, d), of the last tokens."""
        attended = self.attention(self.attention_norm(x), batch, rotation, mask, needed)
        x = rearrange(x, "(b n) d -> b n d", b=batch)
        x = x[:, x.shape[1] - needed :].flatten(0, 1) + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def for_steps(self, cache: LayerCache, rows: int | None) -> DecodeBlock:
        """What steps take of it: its weights, laid out for so many `rows`, and its share of a cache."""
        return DecodeBlock(
            attention_norm=self.attention_norm.weight,
            qkv=prepack_linear(self.attention.qkv.weight, rows),
            qk_scale=self.attention.qk_scale.view(2, 1, -1),
            out=prepack_linear(self.attention.out.weight, rows),
            mlp_norm=self.mlp_norm.weight,
            gate_value=prepack_linear(self.mlp.gate_value.weight, rows),
            mlp_out=prepack_linear(self.mlp.out.weight, rows),
            cache=cache,
            backend=self.attention.backend,
        )


class Transformer(nn.Module):
    """Blocks and a last norm, for tokens at the slots 0 .. n-1, whose positions `rotation` tells."""

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, cfg: TransformerConfig, rotation: Rotation) -> None:
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.norm = RMSNorm(cfg.width)
        over_slots = rotation.over_slots()
        self.register_buffer("rotary_cos", over_slots.cos, persistent=False)  # (n, 1, 1, e)
        self.register_buffer("rotary_sin", over_slots.sin, persistent=False)
        self._init_weights()

    @property
    def rotation(self) -> Rotation:
        return Rotation(self.rotary_cos, self.rotary_sin)

    def _init_weights(self) -> None:
        """Variance-preserving, and each branch's last projection zero: at the start every block is the
        identity."""
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (block.attention.qkv, block.mlp.gate_value):
                nn.init.normal_(linear.weight, std=self.cfg.width**-0.5)
            for linear in (block.attention.out, block.mlp.out):
                nn.init.zeros_(linear.weight)

    def forward(
        self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, needed: int | None = None
    ) -> Tensor:
        """(b, n, d) -> (b, needed, d), of the last tokens, without of all. The tokens are the first n, and see those
        before them, unless `positions` (n,) and `mask` (n, n) bool tell otherwise."""
        batch, n, width = x.shape
        needed = n if needed is None else needed
        rotation = self.rotation.at(slice(0, n) if positions is None else positions).over_heads(self.cfg.heads)
        rows = x.flatten(0, 1)
        *blocks, last = self.blocks
        for block in blocks:
            rows = block(rows, batch, rotation, mask, n)
        rows = last(rows, batch, rotation, mask, needed)
        return self.norm(rows).view(batch, needed, width)

    def decode_blocks(self, cache: TransformerCache, rows: int | None = None) -> list[DecodeBlock]:
        """For `step`, when many follow each other in the same buffers and with the same weights.

        With `rows` they are laid out for steps of so many rows in all, and don't see later changes of the weights.
        """
        layers = []
        for block, layer in zip(self.blocks, cache.layers(), strict=True):
            assert isinstance(block, Block)
            layers.append(block.for_steps(layer, rows))
        return layers

    def step(
        self,
        x: Tensor,
        cache: TransformerCache,
        at: Placement | None = None,
        layers: Sequence[DecodeBlock] | None = None,
    ) -> tuple[Tensor, TransformerCache]:
        """Some tokens (b, m, d), by default the next after those in the cache, which then is so much longer.

        With `at` they stand elsewhere in the cache's buffers; its length stays, for the caller to `advanced`. `layers`
        are the cache's `decode_blocks`, looked up unless given.
        """
        if layers is not None and layers[0].cache.own.storage != cache.own.storage:
            raise ValueError("Transformer: layers must be the step_layers of the cache that is given, not of another.")
        here, rotation = self._place(x, cache, at)
        rows = x.flatten(0, 1)
        for layer in self.decode_blocks(cache) if layers is None else layers:
            rows = layer(rows, rotation, here)
        return self.norm(rows).view_as(x), cache.advanced(x.shape[1]) if at is None else cache

    def prefill(self, x: Tensor, cache: TransformerCache, at: Placement | None = None) -> TransformerCache:
        """As `step` of tokens (b, m, d) of which only keys and values are needed: the cache, so much longer.

        What the last layer would make of them is left out. Unlike a `step`'s, the cache is longer wherever they stand.
        """
        here, rotation = self._place(x, cache, at)
        rows = x.flatten(0, 1)
        *layers, last = self.decode_blocks(cache)
        for layer in layers:
            rows = layer(rows, rotation, here)
        last.prefill(rows, rotation, here)
        return cache.advanced(x.shape[1])

    def _place(self, x: Tensor, cache: TransformerCache, at: Placement | None) -> tuple[Placement, Rotation]:
        """Where tokens stand, what each sees, and how they are turned there."""
        if len(x) != cache.batch:
            raise ValueError(f"Transformer: there must be a row for each of the cache's {cache.batch}, got {len(x)}.")
        if at is None:
            cache.check_room(x.shape[1])
        here = cache.next(x.shape[1]) if at is None else at
        if cache.begin is not None:
            here = here.since(cache.begin)
        return here, self.rotation.at(here.positions)

    def init_cache(
        self,
        batch: int,
        capacity: int,
        begin: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TransformerCache:
        """An empty cache; the first `begin` (b,) tokens of each row will be padding, which no others see."""
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
