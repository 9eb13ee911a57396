"""The transformer: pre-norm blocks of RMSNorm, attention with QK-norm and rotary positions, and SwiGLU.

`forward` takes a whole sequence; `step` some tokens after those in a cache, with the same result. The
cache belongs to the caller, and `Transformer.step` alone advances its position.

Shapes: b sequences, n tokens, d width, k heads, e width of a head.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.attention import AttentionBackend, attention, attention_over
from world_model.cache import LayerCache, Placement, TransformerCache
from world_model.rotary import Rotation

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer. `attention`: `auto` is xformers on CUDA where installed, else PyTorch's
    SDPA."""

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


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=NORM_EPS)


class Attention(nn.Module):
    """Self-attention; queries and keys are normalised before they are turned by their positions."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.backend: AttentionBackend = cfg.attention
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(2 * cfg.head_width))  # of queries, of keys
        self.out = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """x (b, n, d) -> (b, n, d); causal without a mask (n, n)."""
        q, k, v = self._project(x, rotation)
        return self._join(attention(q, k, v, causal=mask is None, mask=mask, backend=self.backend))

    def step(self, x: Tensor, rotation: Rotation, cache: LayerCache, at: Placement) -> Tensor:
        """As `forward` for some tokens, whose keys and values it writes into the cache's buffers."""
        # Under autocast they are of another precision than the buffers.
        q, k, v = (part.to(cache.own.keys.dtype) for part in self._project(x, rotation))
        segments = cache.write(k, v, at)
        return self._join(attention_over(q, segments, causal=at.causal, mask=at.mask, backend=self.backend))

    def _project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q_k, v = rearrange(self.qkv(x), "b n (three k e) -> b three k n e", three=3, k=self.heads).split([2, 1], dim=1)
        scale = rearrange(self.qk_scale.to(q_k.dtype), "(two e) -> two 1 1 e", two=2)
        q_k = F.rms_norm(q_k, scale.shape[-1:], eps=NORM_EPS) * scale
        q, k = rotation(q_k).unbind(dim=1)
        return q, k, v[:, 0]

    def _join(self, x: Tensor) -> Tensor:
        return self.out(rearrange(x, "b k n e -> b n (k e)"))


class SwiGLU(nn.Module):
    """`out(silu(gate(x)) * value(x))` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.gate_value = nn.Linear(cfg.width, 2 * cfg.mlp_width, bias=False)
        self.out = nn.Linear(cfg.mlp_width, cfg.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and SwiGLU, each on the normalised residual stream."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(cfg.width)
        self.attention = Attention(cfg)
        self.mlp_norm = RMSNorm(cfg.width)
        self.mlp = SwiGLU(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, rotation: Rotation, cache: LayerCache, at: Placement) -> Tensor:
        x = x + self.attention.step(self.attention_norm(x), rotation, cache, at)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Blocks and a last norm, for tokens at the slots 0 .. n-1, whose positions `rotation` tells."""

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, cfg: TransformerConfig, rotation: Rotation) -> None:
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.norm = RMSNorm(cfg.width)
        self.register_buffer("rotary_cos", rotation.cos, persistent=False)
        self.register_buffer("rotary_sin", rotation.sin, persistent=False)
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

    def forward(self, x: Tensor, slots: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(b, n, d) -> (b, n, d). The tokens are the first n, and see those before them, unless `slots` (n,) and
        `mask` (n, n) bool tell otherwise."""
        rotation = self.rotation[slice(0, x.shape[1]) if slots is None else slots]
        for block in self.blocks:
            x = block(x, rotation, mask)
        return self.norm(x)

    def step(self, x: Tensor, cache: TransformerCache, at: Placement | None = None) -> tuple[Tensor, TransformerCache]:
        """Some tokens (b, n, d), by default the next after those in the cache, which then is so much longer.

        With `at` they stand elsewhere in the cache's buffers; its length stays, for the caller to `advanced`.
        """
        if at is None:
            cache.check_room(x.shape[1])
        here = cache.next(x.shape[1]) if at is None else at
        if cache.begin is not None:
            here = here.since(cache.begin)
        rotation = self.rotation[here.slots]
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = block.step(x, rotation, cache.layer(index), here)
        return self.norm(x), cache.advanced(x.shape[1]) if at is None else cache

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
