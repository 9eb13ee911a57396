"""The convolutions of VidTok: one implementation, in which only the time padding makes a model causal or not.

Shapes: everything inside the network is channels-last video, `x: (b, t, h, w, c)`.

Each layer has `forward(x)` for a whole clip and `step(x, state, last) -> (y, state)` for the next frames of a stream;
`state=None` starts a stream and `last=True` ends it. `forward` is a single step that starts and ends the stream.

This file, `blocks.py`, `resampling.py` and `encoder_decoder.py` are the definition of the network, and what runs under
`reference_path()`. `fast/` has kernels that compute the same in less time or memory.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.tokenizer.architecture import TimePadding

State = Any
"""What a layer needs of earlier frames: None, a tensor, or a dict of states by name."""


class StreamLayer(nn.Module):
    """A layer that runs on a whole clip or on a stream of its frames, with the same result."""

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None, last=True)[0]


class FrameLayer(StreamLayer):
    """A layer that processes each frame on its own, and so needs no state."""

    def on_frames(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return self.on_frames(x), None


def run(layer: StreamLayer, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """A step of `layer`. A whole clip goes through its `forward`, so that its forward hooks see it."""
    if state is None and last:
        return layer(x), None
    return layer.step(x, state, last)


def step_through(layers: list[tuple[str, StreamLayer]], x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """Runs `layers` in order; their states are in a dict under their names."""
    states: dict[str, State] = {}
    for name, layer in layers:
        x, new = run(layer, x, None if state is None else state.get(name), last)
        if new is not None:
            states[name] = new
    return x, states or None


def own(frames: Tensor) -> Tensor:
    """A copy, to keep as state: a view would keep the whole tensor alive, in every layer of the network."""
    return frames.clone(memory_format=torch.contiguous_format)


class TimeConv(StreamLayer):
    """A convolution with kernel 3 in time and, if `spatial`, in height and width; `stride` is along time."""

    def __init__(self, c_in: int, c_out: int, *, padding: TimePadding, spatial: bool = True, stride: int = 1) -> None:
        super().__init__()
        self.padding, self.spatial, self.stride = padding, spatial, stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *((3, 3, 3) if spatial else (3,))))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        seen = self.window(x, state, last)
        return conv_in_time(seen, self.weight, self.bias, self.stride), self.state_after(seen, last)

    def window(self, x: Tensor, state: Tensor | None, last: bool) -> Tensor:
        """The frames that the kernel sees in this step."""
        front = self._front(x) if state is None else state
        behind = [torch.zeros_like(x[:, :1])] if last and not self.padding.causal else []
        return torch.cat([front, x, *behind], dim=1)

    def state_after(self, seen: Tensor, last: bool) -> Tensor | None:
        """The last of these frames, which the kernel sees again in the next step."""
        return None if last else own(seen[:, self.stride * self.outputs(seen) :])

    def outputs(self, seen: Tensor) -> int:
        """The number of output frames for these input frames."""
        return (seen.shape[1] - 3) // self.stride + 1 if seen.shape[1] > 2 else 0

    def _front(self, x: Tensor) -> Tensor:
        """The padding before the first frame."""
        frames = (3 if self.padding.causal else 2) - self.stride
        front = x[:, :1].expand(-1, frames, -1, -1, -1)
        return front if self.padding is TimePadding.FIRST_FRAME else torch.zeros_like(front)


def conv_in_time(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """A convolution without padding in time; weight: (c_out, c_in, 3), or (c_out, c_in, 3, 3, 3) with padding 1 in
    space."""
    if x.shape[1] < 3:  # the end of a stream, with no new frame
        return x.new_zeros(len(x), 0, *x.shape[2:4], len(weight))
    space = 1 if weight.ndim == 5 else 0
    kernel = weight if space else weight[..., None, None]
    y = F.conv3d(rearrange(x, "b t h w c -> b c t h w"), kernel, bias, (stride, 1, 1), (0, space, space))
    return rearrange(y, "b c t h w -> b t h w c")


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
    """A 3x3 convolution of each frame; with `stride` 2, padded with zeros at the right and the bottom only."""

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def on_frames(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 1, 0, 1) if self.stride == 2 else (0, 0, 1, 1, 1, 1))
        frames = rearrange(x, "b t h w c -> (b t) c h w")
        y = F.conv2d(frames, self.weight, self.bias, stride=self.stride)
        return rearrange(y, "(b t) c h w -> b t h w c", b=len(x))


class CausalKey(StreamLayer):
    """Holds a causal model's convolution as `.conv`, since published checkpoints name it `NAME.conv.weight`."""

    def __init__(self, conv: StreamLayer) -> None:
        super().__init__()
        self.conv = conv

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return run(self.conv, x, state, last)


def time_conv(c_in: int, c_out: int, *, padding: TimePadding, spatial: bool = True, stride: int = 1) -> StreamLayer:
    """A `TimeConv` under its published name."""
    conv = TimeConv(c_in, c_out, padding=padding, spatial=spatial, stride=stride)
    return CausalKey(conv) if padding.causal else conv


def point_conv(c_in: int, c_out: int, *, padding: TimePadding) -> StreamLayer:
    """A 1x1x1 convolution under its published name."""
    conv = PointConv(c_in, c_out, dims=3)
    return CausalKey(conv) if padding.causal else conv


def bare(conv: StreamLayer) -> TimeConv:
    """The convolution inside a `time_conv`."""
    inner = conv.conv if isinstance(conv, CausalKey) else conv
    assert isinstance(inner, TimeConv)
    return inner


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def reset_conv_parameters(weight: Tensor, bias: Tensor) -> None:
    """PyTorch's own initialization of convolutions."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(bias, -bound, bound)
