"""The convolutions of VidTok: one implementation, whose time padding alone makes it causal or not.

Shapes: everything inside the network is channels-last video, `x: (b, t, h, w, c)`, so that norms, spatial and
temporal convolutions all work on the same memory without a transpose.

Each layer has `forward(x)` for a whole clip and `step(x, state, last) -> (y, state)` for the next frames of a stream;
`state=None` starts one and `last=True` ends it. `forward` is a single step that starts and ends the stream.
"""

import math
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

State = Any
"""What a layer needs of the frames before: None, a tensor, or a dict of states by the layer's name."""


class TimePadding(StrEnum):
    """How a temporal kernel sees beyond the clip's ends (`vidtok.md`, "Time padding")."""

    SYMMETRIC = "symmetric"  # non-causal: zero frames at both ends
    ZEROS = "zeros"  # causal, v1.0: zero frames in front
    FIRST_FRAME = "first_frame"  # causal, v1.1: copies of the first frame in front

    @property
    def causal(self) -> bool:
        return self is not TimePadding.SYMMETRIC


class StreamLayer(nn.Module):
    """A layer that runs on a whole clip at once or on a stream of its frames, with the same result."""

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None, last=True)[0]


class FrameLayer(StreamLayer):
    """A layer that treats each frame on its own, and so needs no state."""

    def on_frames(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return self.on_frames(x), None


def step_through(layers: "list[tuple[str, StreamLayer]]", x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """Runs `layers` in order; their states live in a dict under their names."""
    states: dict[str, State] = {}
    for name, layer in layers:
        x, new = layer.step(x, None if state is None else state.get(name), last)
        if new is not None:
            states[name] = new
    return x, states or None


def pad_front(
    x: Tensor, state: Tensor | None, frames: int, padding: TimePadding, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Puts the `frames` frames before `x` in front of it; also returns those that the next step needs, if any."""
    if state is None:
        front = x[:, :1].expand(-1, frames, -1, -1, -1)
        state = front if padding is TimePadding.FIRST_FRAME else torch.zeros_like(front)
    x = torch.cat([state, x], dim=1)
    return x, None if last else own(x[:, -frames:])


def own(part: Tensor) -> Tensor:
    """A copy, to keep as state: a view would keep all of the larger tensor alive, in every layer of the network."""
    return part.clone(memory_format=torch.contiguous_format)


class TimeConv(StreamLayer):
    """A convolution with kernel 3 in time and, if `spatial`, in height and width; `stride` is that in time."""

    def __init__(self, c_in: int, c_out: int, *, padding: TimePadding, spatial: bool = True, stride: int = 1) -> None:
        super().__init__()
        self.padding, self.spatial, self.stride = padding, spatial, stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *((3, 3, 3) if spatial else (3,))))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        if x.shape[1] == 0:
            return x.new_zeros(*x.shape[:-1], self.weight.shape[0]), state
        if self.padding.causal:
            x, state = pad_front(x, state, 3 - self.stride, self.padding, last)
        else:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 2 - self.stride, 1))
        if not self.spatial:
            # As a picture of t x (h w) positions: a 2D kernel has a fast path everywhere, a (3, 1, 1) one has not.
            y = F.conv2d(rearrange(x, "b t h w c -> b c t (h w)"), self.weight.unsqueeze(-1), self.bias)
            return rearrange(y, "b c t (h w) -> b t h w c", h=x.shape[2]), state
        if x.device.type == "cpu":
            return self._by_taps(x), state
        y = F.conv3d(
            rearrange(x, "b t h w c -> b c t h w"),
            self.weight,
            self.bias,
            stride=(self.stride, 1, 1),
            padding=(0, 1, 1),
        )
        return rearrange(y, "b c t h w -> b t h w c"), state

    def _by_taps(self, x: Tensor) -> Tensor:
        """The convolution as the sum of one in 2D for each frame of the kernel.

        On a CPU it is as fast as conv3d, and 5 to 20 times as fast as what PyTorch falls back to for some shapes
        (a single clip in one thread).
        """
        count = (x.shape[1] - 3) // self.stride + 1
        taps = []
        for k in range(3):
            frames = x[:, k : k + self.stride * (count - 1) + 1 : self.stride]
            frames = rearrange(frames, "b t h w c -> (b t) c h w")
            taps.append(F.conv2d(frames, self.weight[:, :, k], self.bias if k == 0 else None, padding=1))
        return rearrange(taps[0] + taps[1] + taps[2], "(b t) c h w -> b t h w c", b=x.shape[0])


class PointConv(FrameLayer):
    """A convolution with kernel 1 in all of its `dims` dimensions."""

    def __init__(self, c_in: int, c_out: int, *, dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *[1] * dims))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def on_frames(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class SpatialConv(FrameLayer):
    """A 3x3 convolution of each frame; with `stride` 2, padded with zeros at the right and the bottom alone."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def on_frames(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        if self.stride == 2:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        y = rearrange(x, "b t h w c -> (b t) c h w")
        y = F.conv2d(y, self.weight, self.bias, self.stride, padding=1 if self.stride == 1 else 0)
        return rearrange(y, "(b t) c h w -> b t h w c", b=b)


class CausalKey(StreamLayer):
    """Holds a causal model's convolution as `.conv`, since published checkpoints name it `NAME.conv.weight`."""

    def __init__(self, conv: StreamLayer) -> None:
        super().__init__()
        self.conv = conv

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return self.conv.step(x, state, last)


def time_conv(c_in: int, c_out: int, *, padding: TimePadding, spatial: bool = True, stride: int = 1) -> StreamLayer:
    """A `TimeConv` under its published name."""
    conv = TimeConv(c_in, c_out, padding=padding, spatial=spatial, stride=stride)
    return CausalKey(conv) if padding.causal else conv


def point_conv(c_in: int, c_out: int, *, padding: TimePadding) -> StreamLayer:
    """A 1x1x1 convolution under its published name."""
    conv = PointConv(c_in, c_out, dims=3)
    return CausalKey(conv) if padding.causal else conv


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def reset_conv_parameters(weight: Tensor, bias: Tensor) -> None:
    """PyTorch's own initialisation of convolutions."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(bias, -bound, bound)
