"""A pre-norm block: RMSNorm, attention with QK-norm and rotary positions, and SwiGLU.

`forward` takes a whole sequence. `step` takes some tokens after those in a cache, with the same result.

Shapes: b sequences, n tokens, m new ones, d width, k heads, e width of a head.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.field_checks import check_fields
from world_model.transformer.attention import AttentionBackend, attention, attention_over
from world_model.transformer.cache import LayerCache, Placement, Segment
from world_model.transformer.fast.choice import chunks_attention, functions
from world_model.transformer.fast.chunked_attention import causal_attention
from world_model.transformer.rotary import Rotation

MAX_WIDTH, MAX_DEPTH = 2**16, 512  # far beyond any model that fits a machine


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer.

    `attention`: `auto` is xformers on CUDA where it has a kernel, products over chunks of queries in training on a CPU,
    else PyTorch's SDPA.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 2.67
    dropout: float = 0.0
    attention: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, largest in (("width", MAX_WIDTH), ("depth", MAX_DEPTH), ("heads", MAX_WIDTH)):
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"TransformerConfig: {name} must be 1 to {largest}, got {getattr(self, name)}.")
        if self.width % self.heads or self.head_width % 2 or self.head_width < 6:
            raise ValueError(
                "TransformerConfig: width must be heads times an even number of at least 6, got width "
                f"{self.width} for {self.heads} heads."
            )
        if not 0 < self.mlp_ratio <= MAX_WIDTH:
            raise ValueError(
                f"TransformerConfig: mlp_ratio must be above 0 and at most {MAX_WIDTH}, got {self.mlp_ratio}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"TransformerConfig: dropout must be in [0, 1), got {self.dropout}.")
        if self.attention not in ("auto", "sdpa", "xformers"):
            raise ValueError(f"TransformerConfig: attention must be auto, sdpa or xformers, got {self.attention!r}.")

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU, a multiple of 8."""
        return max(8, round(self.mlp_ratio * self.width / 8) * 8)


class Linear(nn.Linear):
    """A linear layer without a bias."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        multiplied: Tensor = functions(x).linear(x, self.weight)
        return multiplied


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = functions(x).rms_norm(x, self.weight)
        return normalised


class SwiGLU(nn.Module):
    """`out(silu(gate(x)) * value(x))` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.gate_value = Linear(cfg.width, 2 * cfg.mlp_width)
        self.out = Linear(cfg.mlp_width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        gate_value = self.gate_value(x)
        return self.out(functions(gate_value).swiglu(gate_value))


class Attention(nn.Module):
    """Self-attention. Queries and keys are normalised, then rotated by their positions."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.backend: AttentionBackend = cfg.attention
        self.qkv = Linear(cfg.width, 3 * cfg.width)
        self.qk_scale = nn.Parameter(torch.ones(2 * cfg.head_width))  # of queries, then of keys
        self.out = Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, needed: int) -> Tensor:
        """x (b, n, d) -> (b, needed, d), of the last tokens; causal without a mask (n, n)."""
        q, k, v = self._queries_keys_values(x, rotation)
        if mask is not None:  # without one, SDPA is faster for all queries than for some by a mask
            q, mask = q[:, :, q.shape[2] - needed :], mask[len(mask) - needed :]
        if mask is None and self.backend == "auto" and chunks_attention(q, k):
            seen = causal_attention(q, k, v)
        else:
            seen = attention(q, k, v, causal=mask is None, mask=mask, backend=self.backend)
        return self.out(rearrange(seen[:, :, seen.shape[2] - needed :], "b k n e -> b n (k e)"))

    def step(self, x: Tensor, rotation: Rotation, cache: LayerCache, at: Placement) -> Tensor:
        """x (b, m, d) -> (b, m, d), of tokens placed in a cache, whose keys and values are written into it."""
        q, segments = self.prefill(x, rotation, cache, at)
        seen = attention_over(q, segments, causal=at.causal, mask=at.mask, backend=self.backend)
        return self.out(rearrange(seen, "b k m e -> b m (k e)"))

    def prefill(
        self, x: Tensor, rotation: Rotation, cache: LayerCache, at: Placement
    ) -> tuple[Tensor, tuple[Segment, ...]]:
        """Write keys and values of x (b, m, d); -> queries (b, k, m, e), and the segments that they attend to."""
        q, k, v = (part.to(cache.own.keys.dtype) for part in self._queries_keys_values(x, rotation))
        return q, cache.write(k, v, at)

    def _queries_keys_values(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        qkv = rearrange(self.qkv(x), "b n (three k e) -> b n three k e", three=3, k=self.heads)
        q, k, v = functions(qkv).queries_keys_values(qkv, self.qk_scale.view(2, 1, -1), rotation)
        return q, k, v


class Block(nn.Module):
    """Attention and SwiGLU, each on the normalised residual stream."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(cfg.width)
        self.attention = Attention(cfg)
        self.mlp_norm = RMSNorm(cfg.width)
        self.mlp = SwiGLU(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, needed: int) -> Tensor:
        """x (b, n, d) -> (b, needed, d), of the last tokens; causal without a mask (n, n)."""
        attended = self.attention(self.attention_norm(x), rotation, mask, needed)
        x = x[:, x.shape[1] - needed :] + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, rotation: Rotation, cache: LayerCache, at: Placement) -> Tensor:
        """x (b, m, d) -> (b, m, d), of tokens placed in a cache, whose keys and values are written into it."""
        x = x + self.attention.step(self.attention_norm(x), rotation, cache, at)
        return x + self.mlp(self.mlp_norm(x))


@dataclass(eq=False)  # not frozen: torch 2.9 and 2.10 do not compile calls of frozen ones
class DecodeBlock:
    """A block, and one layer of a cache, for steps that follow each other in the same buffers."""

    block: Block
    cache: LayerCache

    def __call__(self, rows: Tensor, rotation: Rotation, at: Placement) -> Tensor:
        """`Block.step` of tokens (b * m, d)."""
        return self.block.step(self._by_sequence(rows), rotation, self.cache, at).flatten(0, 1)

    def prefill(self, rows: Tensor, rotation: Rotation, at: Placement) -> None:
        """Write keys and values of tokens (b * m, d), and nothing else."""
        x = self.block.attention_norm(self._by_sequence(rows))
        self.block.attention.prefill(x, rotation, self.cache, at)

    def _by_sequence(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.cache.own.keys.shape[0], -1))
