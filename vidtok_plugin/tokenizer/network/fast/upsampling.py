"""Upsampling with the products first: the kernel's taps are applied at the lower rate, before the interpolation.

Each tap of the kernel, in time or in space, commutes with interpolating frames or repeating pixels. So the products of
the taps are computed first, on half of the frames or a quarter of the pixels, then interpolated, shifted and added.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.common.one_dnn import linear
from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.fast.chunking import add, chunk_ranges, chunk_size, join_rows, split_rows
from vidtok_plugin.tokenizer.network.fast.convolutions import conv_frames, mixed_conv
from vidtok_plugin.tokenizer.network.fast.dispatch import inference
from vidtok_plugin.tokenizer.network.layers import State, bare
from vidtok_plugin.tokenizer.network.resampling import (
    SpatialUpsample,
    TemporalUpsample,
    interpolate,
    refuse_state_of_other_path,
)


def upsample_in_space(layer: SpatialUpsample, x: Tensor) -> Tensor:
    """`layer(x)` with a quarter of the arithmetic: the kernel's nine taps are 1x1 convolutions of `x`."""
    b, t, h, w, c = x.shape
    weight = rearrange(layer.conv.weight, "o i kh kw -> (kh kw o) i")
    products = linear(x.reshape(b * t * h * w, c), weight).view(b * t, h, w, 3, 3, c)
    columns = _repeat_and_sum(products.unbind(4), dim=2)
    del products
    y = _repeat_and_sum(columns.unbind(4), dim=1)  # (b t, h, 2, w, 2, c)
    return add(layer.conv.bias.to(y.dtype), y.reshape(b, t, 2 * h, 2 * w, c))


def _repeat_and_sum(products: Sequence[Tensor], *, dim: int) -> Tensor:
    """A convolution with kernel 3 along `dim`, on an input that is repeated there and padded with zeros.

    products: the input times each of the kernel's three taps.
    Returns the pairs of outputs, in a new dimension after `dim`.
    """
    first, middle, last = products
    # Outputs 2i and 2i + 1 see inputs i - 1, i, i and i, i, i + 1.
    if inference():
        pairs = middle.new_empty(*middle.shape[: dim + 1], 2, *middle.shape[dim + 1 :])
        even, odd = pairs.select(dim + 1, 0), pairs.select(dim + 1, 1)
        torch.add(middle, last, out=even)
        torch.add(first, middle, out=odd)
    else:
        even, odd = middle + last, first + middle
    inner = middle.shape[dim] - 1
    even.narrow(dim, 1, inner).add_(first.narrow(dim, 0, inner))
    odd.narrow(dim, 0, inner).add_(last.narrow(dim, 1, inner))
    return pairs if inference() else torch.stack([even, odd], dim=dim + 1)


def upsample_in_time(layer: TemporalUpsample, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """A step of `layer` with half of the arithmetic of its definition.

    State: "carry", what earlier frames add to the next two; in v1.1 also "seen", the three products of the last frame
    of the rest, side by side in the channels, from which interpolation continues; 0 frames if there is no rest yet.
    """
    now = 2 if layer.padding.causal else 1  # where the kernel sees the frame that it makes
    weight, bias = mixed_conv(bare(layer.conv), layer.mix_factor, slice(now, now + 1))
    taps = weight.unbind(2)
    (b, t, h, w, c), outputs = x.shape, upsampled_frames(layer, x.shape[1], state, last)
    frames = chunk_size(x, 1)
    rows = chunk_size(x[:, :frames], 2, growth=8.0)  # all intermediate tensors of a strip of rows fit in the cache
    if max(frames, layer.first_frames) >= t and rows >= h:
        return _interpolate_and_sum(layer, _products(layer, x, taps, bias, last), state, last)
    y, done, strips = None, 0, list(chunk_ranges(h, rows))
    states = [split_rows(state, top, bottom) for top, bottom in strips]
    for start, end in chunk_ranges(t, frames, first=layer.first_frames):
        ends = last and end == t
        products = _products(layer, x[:, start:end], taps, bias, ends)
        y = products[0].new_empty(b, outputs, h, w, c) if y is None else y
        for i, (top, bottom) in enumerate(strips):
            strip, states[i] = _interpolate_and_sum(layer, [p[:, :, top:bottom] for p in products], states[i], ends)
            y[:, done : done + strip.shape[1], top:bottom] = strip
        done += strip.shape[1]
        del products  # before the next are made
    assert y is not None
    return y, join_rows(states)


def upsampled_frames(layer: TemporalUpsample, t: int, state: State, last: bool) -> int:
    """The number of output frames for `t` more: two each, but one is held back until the next frame is known."""
    refuse_state_of_other_path(state, "carry")
    if layer.padding is TimePadding.ZEROS:
        return 2 * t
    symmetric = layer.padding is TimePadding.SYMMETRIC
    begun = state is not None and (symmetric or state["seen"].shape[1] > 0)
    waits = not last and (symmetric or begun or t > (layer.first_frames if state is None else 0))
    return 2 * t + int(begun) - int(waits)  # int: torch 2.9 does not compile sums of symbols and bools


def _products(layer: TemporalUpsample, x: Tensor, taps: Sequence[Tensor], bias: Tensor, last: bool) -> list[Tensor]:
    """The product of each tap, oldest first, with each frame."""
    if last and layer.padding is TimePadding.SYMMETRIC:
        x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    return [conv_frames(x, tap, bias if k == 2 else None) for k, tap in enumerate(taps)]


def _interpolate_and_sum(
    layer: TemporalUpsample, products: list[Tensor], state: State, last: bool
) -> tuple[Tensor, State]:
    """The products interpolated, shifted and added."""
    carry = None if state is None else state["carry"]
    if layer.padding is TimePadding.FIRST_FRAME:
        seen = [None] * 3 if state is None else state["seen"].chunk(3, dim=-1)
        steps = [_linear(p, frame, last, layer.first_frames) for p, frame in zip(products, seen, strict=True)]
        y, carry = _shifted_sum([frames for frames, _ in steps], carry, layer.padding)
        return y, None if last else {"carry": carry, "seen": torch.cat([frame for _, frame in steps], dim=-1)}
    y, carry = _shifted_sum([p.repeat_interleave(2, dim=1) for p in products], carry, layer.padding)
    if layer.padding is TimePadding.SYMMETRIC:  # its frames are those of a causal kernel, one frame later
        y = y[:, 1 if state is None else 0 : -1 if last else None]
    return y, None if last else {"carry": carry}


def _shifted_sum(products: list[Tensor], carry: Tensor | None, padding: TimePadding) -> tuple[Tensor, Tensor]:
    """Frame j is the sum of the oldest tap's frame j - 2, the middle one's j - 1 and the newest one's j.

    carry: the contribution of earlier frames to the first two. Also returns that of these frames to the next two.
    """
    oldest, middle, y = products
    n = y.shape[1]
    if carry is None:
        front = [oldest[:, :1], middle[:, :1]]
        if padding is not TimePadding.FIRST_FRAME:
            front = [torch.zeros_like(frame) for frame in front]
        carry = torch.cat([front[0] + front[1], front[0]], dim=1)
    if n == 0:
        return y, carry
    before = oldest[:, -2:-1] if n > 1 else carry[:, 1:]
    new_carry = torch.cat([middle[:, -1:] + before, oldest[:, -1:]], dim=1)
    y[:, 1:].add_(middle[:, :-1])
    y[:, 2:].add_(oldest[:, :-2])
    y[:, :2].add_(carry[:, :n])
    return y, new_carry


def _linear(x: Tensor, seen: Tensor | None, last: bool, first_frames: int) -> tuple[Tensor, Tensor]:
    """The frames of linear interpolation that are known, and the last frame of the rest."""
    if seen is not None:
        rest = torch.cat([seen, x], dim=1)
        return _interpolate(rest, start=seen.shape[1] == 0, end=last), rest[:, -1:]
    first, rest = x[:, :first_frames], x[:, first_frames:]
    y = torch.cat([_interpolate(first, start=True, end=True), _interpolate(rest, start=True, end=last)], dim=1)
    return y, rest[:, -1:]


def _interpolate(x: Tensor, *, start: bool, end: bool) -> Tensor:
    """`resampling.interpolate` without a second copy of the pairs."""
    if not inference():
        return interpolate(x, start=start, end=end)
    left, right = x[:, :-1], x[:, 1:]
    pairs = x.new_empty(*left.shape[:2], 2, *left.shape[2:])
    for place, weight in enumerate((0.25, 0.75)):
        torch.lerp(left, right, weight, out=pairs[:, :, place])
    frames = pairs.flatten(1, 2)
    if not start and not end:
        return frames
    return torch.cat([x[:, :1][:, : int(start)], frames, x[:, -1:][:, : int(end)]], dim=1)
