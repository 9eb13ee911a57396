"""The convolutions of VidTok: one implementation, whose time padding alone makes it causal or not.

Shapes: everything inside the network is channels-last video, `x: (b, t, h, w, c)`, so that norms, spatial and
temporal convolutions all work on the same memory without a transpose.

Each layer has `forward(x)` for a whole clip and `step(x, state, last) -> (y, state)` for the next frames of a stream;
`state=None` starts one and `last=True` ends it. `forward` is a single step that starts and ends the stream.
"""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.tokenizer.network.chunking import add, cat_into, chunk_ranges, chunk_size, map_frames

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
    """A layer that treats each frame on its own, and so needs no state.

    halo, growth, zoom: as `parts.map_frames` takes them.
    """

    halo: int | None = 0
    growth = 1.0
    zoom = 1.0

    def on_frames(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return map_frames(self.on_frames, x, halo=self.halo, growth=self.growth, zoom=self.zoom), None


def step_through(layers: "list[tuple[str, StreamLayer]]", x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """Runs `layers` in order; their states live in a dict under their names."""
    states: dict[str, State] = {}
    for name, layer in layers:
        x, new = layer.step(x, None if state is None else state.get(name), last)
        if new is not None:
            states[name] = new
    return x, states or None


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
        return self.convolve(x, state, last, self.weight, self.bias)

    def convolve(
        self, x: Tensor, state: Tensor | None, last: bool, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A step with another kernel of the same shape."""
        t, (c_out, c_in) = x.shape[1], weight.shape[:2]
        if t == 0:
            return x.new_zeros(*x.shape[:-1], c_out), state
        state = self._front(x) if state is None else state
        behind = 1 if last and not self.padding.causal else 0
        count = (state.shape[1] + t + behind - 3) // self.stride + 1
        step = max(4, chunk_size(x, 1, growth=max(1.0, c_out / c_in), multiple=2))  # whole strides, and an output
        if step >= t or not self.spatial:
            window = torch.cat([state, x, *[torch.zeros_like(x[:, :1])] * behind], dim=1)
            return self._convolved(window, count, weight, bias), None if last else own(window[:, self.stride * count :])

        def parts() -> Iterator[Tensor]:
            nonlocal state
            for start, end in chunk_ranges(t, step):
                part, state = self.convolve(x[:, start:end], state, last and end == t, weight, bias)
                yield part

        return cat_into(parts(), 1, count), state

    def _front(self, x: Tensor) -> Tensor:
        """What kernels see before the first frame."""
        frames = (3 if self.padding.causal else 2) - self.stride
        front = x[:, :1].expand(-1, frames, -1, -1, -1)
        return front if self.padding is TimePadding.FIRST_FRAME else torch.zeros_like(front)

    def _convolved(self, x: Tensor, count: int, weight: Tensor, bias: Tensor) -> Tensor:
        if not self.spatial:
            # As a picture of t x (h w) positions: a 2D kernel has a fast path everywhere, a (3, 1, 1) one has not.
            pictures = x.flatten(2, 3)
            if _has_own_gradients(x):
                y = _ConvInTime.apply(pictures, weight, bias)
            else:
                y = _conv2d(pictures, weight.unsqueeze(-1), bias)
            return y.unflatten(2, x.shape[2:4])
        if x.device.type != "cpu":
            x = rearrange(x, "b t h w c -> b c t h w")
            y = F.conv3d(x, weight, bias, stride=(self.stride, 1, 1), padding=(0, 1, 1))
            return rearrange(y, "b c t h w -> b t h w c")
        return self._by_taps(x, count, weight, bias)

    def _by_taps(self, x: Tensor, count: int, weight: Tensor, bias: Tensor) -> Tensor:
        """The convolution as the sum of one in 2D for each frame of the kernel.

        On a CPU it is as fast as conv3d, and 5 to 20 times as fast as what PyTorch falls back to for some shapes
        (a single clip in one thread).
        """
        c_out, c_in = weight.shape[:2]
        if 3 * c_in <= c_out:  # one convolution of the three frames' channels: little to gather
            taps = [self._seen_by(k, x, count) for k in range(3)]
            return conv_frames(torch.cat(taps, dim=-1), rearrange(weight, "o i k h w -> o (k i) h w"), bias)
        if 3 * c_out <= c_in:  # one convolution to the three frames' outputs: little to add
            products = conv_frames(x, rearrange(weight, "o i k h w -> (k o) i h w"))
            y, *others = (self._seen_by(k, part, count) for k, part in enumerate(products.chunk(3, dim=-1)))
            return y + others[0] + others[1] + bias.to(y.dtype)
        # Gradients of what is unbound are stacked; slices' would be filled up with zeros and added.
        first, *others = weight.unbind(2)
        y = conv_frames(self._seen_by(0, x, count), first, bias)
        for k, tap in enumerate(others, start=1):
            y = add(conv_frames(self._seen_by(k, x, count), tap), y)
        return y

    def _seen_by(self, k: int, x: Tensor, count: int) -> Tensor:
        """The frames that frame `k` of the kernel sees."""
        return x[:, k : k + self.stride * (count - 1) + 1 : self.stride]


def _has_own_gradients(x: Tensor) -> bool:
    """Whether a convolution of `x` is one of the functions below: on a CPU, where gradients are kept and not cast."""
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and torch.is_grad_enabled() and not plain


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


class _ConvInTime(torch.autograd.Function):
    """A convolution of pictures (b, t, n, c) with a kernel (c_out, c, 3) along t.

    Its gradients are a convolution with the kernel turned round, and matrix products: on a CPU those that PyTorch has
    for a (3, 1) kernel take three to four times as long.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _conv2d(x, weight.unsqueeze(-1), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        into_x = into_weight = into_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2).transpose(0, 1).unsqueeze(-1)
            into_x = _conv2d(gradient, turned, None, padding=(2, 0))
        t, rows = gradient.shape[1], gradient.flatten(1, 2)  # (b, t n, c_out)
        if ctx.needs_input_grad[1]:
            seen = (x[:, k : k + t].flatten(1, 2) for k in range(3))
            into_weight = torch.stack([torch.bmm(rows.mT, part).sum(0) for part in seen], dim=2)
        if ctx.needs_input_grad[2]:
            into_bias = rows.sum((0, 1))
        return into_x, into_weight, into_bias


def bare(conv: StreamLayer) -> TimeConv:
    """The convolution under its published name (`time_conv`)."""
    inner = conv.conv if isinstance(conv, CausalKey) else conv
    assert isinstance(inner, TimeConv)
    return inner


class PointConv(FrameLayer):
    """A convolution with kernel 1 in all of its `dims` dimensions."""

    def __init__(self, c_in: int, c_out: int, *, dims: int) -> None:
        super().__init__()
        self.growth = max(1.0, c_out / c_in)
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *[1] * dims))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

    def on_frames(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class SpatialConv(FrameLayer):
    """A 3x3 convolution of each frame; with `stride` 2, padded with zeros at the right and the bottom alone."""

    halo = 2  # an even one, for the stride

    def __init__(self, c_in: int, c_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.empty(c_out))
        reset_conv_parameters(self.weight, self.bias)

        self.zoom = 1 / stride

    def on_frames(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        return conv_frames(x, self.weight, self.bias, stride=self.stride, padding=1 if self.stride == 1 else 0)


def conv_frames(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 1) -> Tensor:
    """A convolution of each frame."""
    return _conv2d(x.flatten(0, 1), weight, bias, stride=stride, padding=padding).unflatten(0, x.shape[:2])


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """A convolution of pictures (n, h, w, c).

    A pattern of einops that merges dimensions would give a single picture a stride by which PyTorch doesn't know
    channels-last memory: it would copy the picture to another layout, and back. Of the weight it would make a
    channels-last copy too, five times as slowly.
    """
    x, stride, padding = x.permute(0, 3, 1, 2), _pair(stride), _pair(padding)
    if torch.compiler.is_compiling():  # which chooses layouts itself
        y = F.conv2d(x, weight, bias, stride, padding)
    elif _has_own_gradients(x):
        y = _Conv2d.apply(x, weight, bias, stride, padding)
    else:
        y = F.conv2d(x, _channels_last(weight), bias, stride, padding)
    return y.permute(0, 2, 3, 1)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class _Conv2d(torch.autograd.Function):
    """A convolution of pictures (n, c, h, w) that lays its weight out anew for the gradients, and doesn't keep it so:
    that would be all of a model's weights a second time."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return F.conv2d(x, _channels_last(weight), bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.biases = None if bias is None else [len(bias)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        how = (ctx.biases, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
        mask = [needed and i < 2 + (ctx.biases is not None) for i, needed in enumerate(ctx.needs_input_grad[:3])]
        found = torch.ops.aten.convolution_backward(gradients[0], x, _channels_last(weight), *how, mask)
        return *found, None, None


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
