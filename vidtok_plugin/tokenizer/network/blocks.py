"""The blocks between VidTok's resampling layers: residual blocks and attention.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.layers import (
    ChannelNorm,
    FrameLayer,
    PointConv,
    SpatialConv,
    State,
    StreamLayer,
    point_conv,
    run,
    step_through,
    time_conv,
)


class ResidualBlock(StreamLayer):
    """norm1, SiLU, conv1, norm2, SiLU, dropout, conv2, plus the input (through a 1x1 conv where the width changes)."""

    def __init__(self, conv1: StreamLayer, conv2: StreamLayer, c_in: int, c_out: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(c_in), conv1
        self.norm2, self.conv2 = ChannelNorm(c_out), conv2
        self.dropout = dropout
        self.widens = c_in != c_out
        if self.widens:
            self.nin_shortcut = PointConv(c_in, c_out, dims=2)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        state = state or {}
        y, first = run(self.conv1, F.silu(self.norm1(x)), state.get("conv1"), last)
        y = F.dropout(F.silu(self.norm2(y)), self.dropout, self.training)
        y, second = run(self.conv2, y, state.get("conv2"), last)
        y = y + (self.nin_shortcut(x) if self.widens else x)
        return y, None if first is None else {"conv1": first, "conv2": second}


class SpatialBlock(ResidualBlock):
    """A residual block on each frame."""

    def __init__(self, c_in: int, c_out: int, *, dropout: float) -> None:
        super().__init__(SpatialConv(c_in, c_out), SpatialConv(c_out, c_out), c_in, c_out, dropout=dropout)


class TemporalBlock(ResidualBlock):
    """A residual block along time at each pixel; it starts as the identity."""

    def __init__(self, c: int, *, padding: TimePadding, dropout: float) -> None:
        convs = [time_conv(c, c, padding=padding, spatial=False) for _ in range(2)]
        for parameter in convs[1].parameters():
            nn.init.zeros_(parameter)
        super().__init__(convs[0], convs[1], c, c, dropout=dropout)


class FrameAttention(FrameLayer):
    """Single-head softmax attention over the positions of each frame on its own."""

    def __init__(self, c: int, *, padding: TimePadding) -> None:
        super().__init__()
        self.norm = ChannelNorm(c)
        self.q, self.k, self.v, self.proj_out = (point_conv(c, c, padding=padding) for _ in range(4))

    def on_frames(self, x: Tensor) -> Tensor:
        y, (b, t, h, w, _) = self.norm(x), x.shape
        q, k, v = (rearrange(conv(y), "b t h w c -> (b t) 1 (h w) c") for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(y, "(b t) 1 (h w) c -> b t h w c", b=b, t=t, h=h, w=w))


class Middle(StreamLayer):
    """The deepest part of encoder and decoder: a 3D residual block, attention, another block."""

    def __init__(self, c: int, *, padding: TimePadding, dropout: float) -> None:
        super().__init__()
        self.block_1 = self._block(c, padding, dropout)
        self.attn_1 = FrameAttention(c, padding=padding)
        self.block_2 = self._block(c, padding, dropout)

    @staticmethod
    def _block(c: int, padding: TimePadding, dropout: float) -> ResidualBlock:
        convs = [time_conv(c, c, padding=padding) for _ in range(2)]
        return ResidualBlock(convs[0], convs[1], c, c, dropout=dropout)

    def layers(self) -> list[tuple[str, StreamLayer]]:
        return [("block_1", self.block_1), ("attn_1", self.attn_1), ("block_2", self.block_2)]

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return step_through(self.layers(), x, state, last)
