"""Convolutions as a CPU computes them fastest: 2D ones on channels-last memory, with gradients of their own.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidtok_plugin.tokenizer.network.fast import dispatch
from vidtok_plugin.tokenizer.network.fast.chunking import add, chunk_size, step_by_chunks
from vidtok_plugin.tokenizer.network.layers import State, TimeConv, conv_in_time


def step_time_conv(
    conv: TimeConv, x: Tensor, state: State, last: bool, weight: Tensor, bias: Tensor
) -> tuple[Tensor, State]:
    """A step of `conv` with this weight and bias."""

    def step(x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        seen = conv.window(x, state, last)
        return _conv_seen(seen, weight, bias, conv.stride, conv.outputs(seen)), conv.state_after(seen, last)

    t, (c_out, c_in) = x.shape[1], weight.shape[:2]
    # Whole strides, and at least one output.
    size = max(4, chunk_size(x, 1, growth=max(1.0, c_out / c_in), multiple=2))
    if size >= t or not conv.spatial:
        return step(x, state, last)
    before = state.shape[1] if state is not None else (3 if conv.padding.causal else 2) - conv.stride
    behind = 1 if last and not conv.padding.causal else 0
    outputs = (before + t + behind - 3) // conv.stride + 1
    return step_by_chunks(step, x, state, last, size=size, outputs=outputs)


def mixed_conv(conv: TimeConv, mix_factor: Tensor, seen: slice) -> tuple[Tensor, Tensor]:
    """`a * mean + (1 - a) * conv` as a single convolution: its weight and bias.

    mean: of the frames that the kernel sees at `seen`; `a` is the sigmoid of `mix_factor`.
    """
    a = torch.sigmoid(mix_factor)
    weight = ((1 - a) * conv.weight).contiguous()
    same_channel = weight.view(-1, *weight.shape[2:])[:: len(weight) + 1]  # (c, 3, 3, 3), of each channel to itself
    same_channel[:, seen, 1, 1].add_(a / (seen.stop - seen.start))
    return weight, (1 - a) * conv.bias


def _conv_seen(x: Tensor, weight: Tensor, bias: Tensor, stride: int, count: int) -> Tensor:
    """The `count` output frames of a temporal kernel for its input frames `x`, padding included."""
    if count == 0:
        return x.new_zeros(len(x), 0, *x.shape[2:4], len(weight))
    if weight.ndim == 3:
        return _conv_along_time(x, weight, bias)
    if not dispatch.on_cpu(x):
        return conv_in_time(x, weight, bias, stride)
    return _conv_by_taps(x, weight, bias, stride, count)


def _conv_along_time(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # On pictures of t x (h w) positions: a 2D kernel has a fast implementation everywhere, a (3, 1, 1) one does not.
    pictures = x.flatten(2, 3)
    if dispatch.own_gradients(x):
        y = _ConvAlongTime.apply(pictures, weight, bias)
    else:
        y = _conv2d(pictures, weight.unsqueeze(-1), bias)
    return y.unflatten(2, x.shape[2:4])


def _conv_by_taps(x: Tensor, weight: Tensor, bias: Tensor, stride: int, count: int) -> Tensor:
    """A 3x3x3 convolution as the sum of a 2D one for each frame of the kernel (its taps).

    On a CPU it is as fast as conv3d, and 5 to 20 times as fast as PyTorch's fallback for some shapes (a single clip in
    one thread).
    """

    def seen_by(k: int, x: Tensor) -> Tensor:
        return x[:, k : k + stride * (count - 1) + 1 : stride]

    c_out, c_in = weight.shape[:2]
    if 3 * c_in <= c_out:  # a single convolution of the three frames' channels: little to gather
        taps = torch.cat([seen_by(k, x) for k in range(3)], dim=-1)
        return conv_frames(taps, rearrange(weight, "o i k h w -> o (k i) h w"), bias)
    if 3 * c_out <= c_in:  # a single convolution to the three frames' outputs: little to add
        products = conv_frames(x, rearrange(weight, "o i k h w -> (k o) i h w"))
        first, second, third = (seen_by(k, part) for k, part in enumerate(products.chunk(3, dim=-1)))
        return first + second + third + bias.to(first.dtype)
    # The gradients of unbound tensors are stacked; those of slices would be padded with zeros and added.
    kernels = weight.unbind(2)
    y = conv_frames(seen_by(0, x), kernels[0], bias)
    for k in (1, 2):
        y = add(conv_frames(seen_by(k, x), kernels[k]), y)
    return y


def conv_frames(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 1) -> Tensor:
    """A 2D convolution of each frame."""
    return _conv2d(x.flatten(0, 1), weight, bias, (stride, stride), (padding, padding)).unflatten(0, x.shape[:2])


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """A convolution of pictures (n, h, w, c).

    An einops pattern that merges dimensions would give a single picture a stride by which PyTorch doesn't recognize
    channels-last memory: it would copy the picture to another layout and back. It would also copy the weight to
    channels-last memory, five times as slowly.
    """
    x = x.permute(0, 3, 1, 2)
    if dispatch.own_gradients(x):
        y = _Conv2d.apply(x, weight, bias, stride, padding)
    else:
        kernel = _channels_last(weight) if dispatch.channels_last_weights() else weight
        y = F.conv2d(x, kernel, bias, stride, padding)
    return y.permute(0, 2, 3, 1)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class _Conv2d(torch.autograd.Function):
    """A conv2d that re-lays out its weight in the backward pass instead of saving a second copy."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return F.conv2d(x, _channels_last(weight), bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else [len(bias)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        settings = (ctx.bias_sizes, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
        mask = [needed and i < 2 + (ctx.bias_sizes is not None) for i, needed in enumerate(ctx.needs_input_grad[:3])]
        into = torch.ops.aten.convolution_backward(gradients[0], x, _channels_last(weight), *settings, mask)
        return *into, None, None


class _ConvAlongTime(torch.autograd.Function):
    """A convolution of pictures (b, t, n, c) with a kernel (c_out, c, 3) along t.

    Its gradients are a convolution with the flipped kernel, and matrix products: on a CPU, PyTorch's own for a (3, 1)
    kernel take three to four times as long.
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
            flipped = weight.flip(2).transpose(0, 1).unsqueeze(-1)
            into_x = _conv2d(gradient, flipped, None, padding=(2, 0))
        t, rows = gradient.shape[1], gradient.flatten(1, 2)  # (b, t n, c_out)
        if ctx.needs_input_grad[1]:
            seen = (x[:, k : k + t].flatten(1, 2) for k in range(3))
            into_weight = torch.stack([torch.bmm(rows.mT, frames).sum(0) for frames in seen], dim=2)
        if ctx.needs_input_grad[2]:
            into_bias = rows.sum((0, 1))
        return into_x, into_weight, into_bias
