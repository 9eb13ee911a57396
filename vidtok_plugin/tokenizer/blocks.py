"""The blocks between VidTok's convolutions: residual blocks, attention, and resampling in space and time.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vidtok_plugin.tokenizer.layers import (
    ChannelNorm,
    FrameLayer,
    PointConv,
    SpatialConv,
    State,
    StreamLayer,
    TimePadding,
    own,
    pad_front,
    point_conv,
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
        if c_in != c_out:
            self.nin_shortcut = PointConv(c_in, c_out, dims=2)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        state = state or {}
        y, first = self.conv1.step(F.silu(self.norm1(x)), state.get("conv1"), last)
        y = F.dropout(F.silu(self.norm2(y)), self.dropout, self.training)
        y, second = self.conv2.step(y, state.get("conv2"), last)
        shortcut = x if x.shape[-1] == y.shape[-1] else self.nin_shortcut(x)
        return shortcut + y, None if first is None else {"conv1": first, "conv2": second}


def spatial_block(c_in: int, c_out: int, *, dropout: float) -> ResidualBlock:
    """A residual block on each frame."""
    return ResidualBlock(SpatialConv(c_in, c_out), SpatialConv(c_out, c_out), c_in, c_out, dropout=dropout)


def temporal_block(c: int, *, padding: TimePadding, dropout: float) -> ResidualBlock:
    """A residual block along time at each pixel; it starts as the identity."""
    convs = [time_conv(c, c, padding=padding, spatial=False) for _ in range(2)]
    for parameter in convs[1].parameters():
        nn.init.zeros_(parameter)
    return ResidualBlock(convs[0], convs[1], c, c, dropout=dropout)


class FrameAttention(FrameLayer):
    """Single-head softmax attention over the positions of each frame on its own."""

    def __init__(self, c: int, *, padding: TimePadding) -> None:
        super().__init__()
        self.norm = ChannelNorm(c)
        self.q, self.k, self.v, self.proj_out = (point_conv(c, c, padding=padding) for _ in range(4))

    def on_frames(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(conv(y), "b t h w c -> (b t) 1 (h w) c") for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        b, t, h, w, _ = x.shape
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

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        layers = [(name, getattr(self, name)) for name in ("block_1", "attn_1", "block_2")]
        return step_through(layers, x, state, last)


class SpatialDownsample(FrameLayer):
    """Halves height and width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c, stride=2)

    def on_frames(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialUpsample(FrameLayer):
    """Doubles height and width: nearest neighbour, then a 3x3 conv."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c)

    def on_frames(self, x: Tensor) -> Tensor:
        return self.conv(repeat(x, "b t h w c -> b t (h 2) (w 2) c"))


class TemporalDownsample(StreamLayer):
    """Halves the frame rate: `a * average + (1 - a) * conv`, both with kernel 3 and stride 2 in time."""

    def __init__(self, c: int, *, padding: TimePadding) -> None:
        super().__init__()
        self.padding = padding
        self.conv = time_conv(c, c, padding=padding, stride=2)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        # The pool and the conv need the same frame before x, so the conv's state serves both.
        y, new_state = self.conv.step(x, state, last)
        if self.padding.causal:
            x, _ = pad_front(x, state, 1, self.padding, last=True)
        else:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))
        pooled = (x[:, 0:-2:2] + x[:, 1:-1:2] + x[:, 2::2]) / 3
        a = torch.sigmoid(self.mix_factor)
        return a * pooled + (1 - a) * y, new_state


class TemporalUpsample(StreamLayer):
    """Doubles the frame rate: interpolates to `u`, then `a * u + (1 - a) * conv(u)`.

    v1.1 interpolates linearly, the frames of the first latent (`first_frames` of them at this level) on their own and
    the rest on their own, so that frame i of the rest needs frame i + 1: a stream holds it back until that comes.
    """

    def __init__(self, c: int, *, padding: TimePadding, first_frames: int) -> None:
        super().__init__()
        self.padding, self.first_frames = padding, first_frames
        self.conv = time_conv(c, c, padding=padding)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        state, new_state = state or {}, {}
        if self.padding is TimePadding.FIRST_FRAME:
            u, new_state["seen"] = self._linear(x, state.get("seen"), last)
        else:
            u = repeat(x, "b t h w c -> b (t 2) h w c")
        y, new_state["conv"] = self.conv.step(u, state.get("conv"), last)
        a = torch.sigmoid(self.mix_factor)
        return a * u + (1 - a) * y, new_state

    def _linear(self, x: Tensor, seen: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """`seen`: the last frame of the rest, whose second half is still to come; no frame while there is no rest."""
        if seen is None:  # the frames of the first latent come whole in the first step
            first, rest = x[:, : self.first_frames], x[:, self.first_frames :]
            return self._join(double_linear(first), rest, rest[:, :0], last)
        return self._join(x[:, :0], x, seen, last)

    def _join(self, done: Tensor, rest: Tensor, seen: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        window = torch.cat([seen, rest], dim=1)
        frames = double_linear(window)
        # Frame j of the window gives frames 2j and 2j + 1; 2j + 1 is final once frame j + 1 is there.
        # Of the frame in `seen`, the first was emitted before.
        start = max(0, 2 * seen.shape[1] - 1)
        end = frames.shape[1] if last else max(start, frames.shape[1] - 1)
        return torch.cat([done, frames[:, start:end]], dim=1), own(window[:, -1:])


def double_linear(x: Tensor) -> Tensor:
    """Linear interpolation to twice the frames (`align_corners=False`, ends repeated)."""
    if x.shape[1] == 0:
        return x
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    after = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
    return rearrange(
        torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], dim=2),
        "b t two h w c -> b (t two) h w c",
    )
