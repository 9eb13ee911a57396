"""A step of each kind of layer by the fast path's kernels.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`. In inference a step may write into `x`, which the network itself made.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidtok_plugin.tokenizer.network.blocks import FrameAttention, Middle, ResidualBlock, SpatialBlock, TemporalBlock
from vidtok_plugin.tokenizer.network.fast import dispatch
from vidtok_plugin.tokenizer.network.fast.chunking import (
    add,
    chunk_ranges,
    chunk_size,
    join_rows,
    map_frames,
    silu,
    split_rows,
)
from vidtok_plugin.tokenizer.network.fast.convolutions import conv_frames, mixed_conv, step_time_conv
from vidtok_plugin.tokenizer.network.fast.upsampling import upsample_in_space, upsample_in_time
from vidtok_plugin.tokenizer.network.layers import (
    CausalKey,
    PointConv,
    SpatialConv,
    State,
    StreamLayer,
    TimeConv,
    bare,
)
from vidtok_plugin.tokenizer.network.resampling import (
    SpatialDownsample,
    SpatialUpsample,
    TemporalDownsample,
    TemporalUpsample,
)

Layers = list[tuple[str, StreamLayer]]


def step(layer: StreamLayer, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """`layer.step(x, state, last)`, with a kernel if there is one for exactly this type of layer."""
    kernel = KERNELS.get(type(layer))
    return layer.step(x, state, last) if kernel is None else kernel(layer, x, state, last)


def whole(layer: StreamLayer, x: Tensor) -> Tensor:
    """`layer(x)` of a whole clip."""
    return step(layer, x, None, last=True)[0]


def step_through(layers: Layers, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """`layers.step_through` with kernels."""
    states: dict[str, State] = {}
    for name, layer in layers:
        x, new = step(layer, x, None if state is None else state.get(name), last)
        if new is not None:
            states[name] = new
    return x, states or None


def _causal_key(layer: CausalKey, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return step(layer.conv, x, state, last)


def _time_conv(layer: TimeConv, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return step_time_conv(layer, x, state, last, layer.weight, layer.bias)


def _temporal_downsample(layer: TemporalDownsample, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    conv = bare(layer.conv)
    return step_time_conv(conv, x, state, last, *mixed_conv(conv, layer.mix_factor, slice(0, 3)))


def _point_conv(layer: PointConv, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return map_frames(layer.on_frames, x, halo=0, growth=_growth(layer.weight)), None


def _spatial_conv(layer: SpatialConv, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    # The halo is even, for the stride.
    return map_frames(lambda frames: _conv_in_space(layer, frames), x, halo=2, zoom=1 / layer.stride), None


def _conv_in_space(layer: SpatialConv, x: Tensor) -> Tensor:
    if layer.stride == 2:
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
    padding = 1 if layer.stride == 1 else 0
    return conv_frames(x, layer.weight, layer.bias, stride=layer.stride, padding=padding)


def _spatial_downsample(layer: SpatialDownsample, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return step(layer.conv, x, state, last)


def _spatial_upsample(layer: SpatialUpsample, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    def upsample(x: Tensor) -> Tensor:
        if dispatch.on_cpu(x):
            return upsample_in_space(layer, x)
        return _conv_in_space(layer.conv, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))

    return map_frames(upsample, x, halo=1, growth=9.0, zoom=2.0), None


def _residual_block(layer: ResidualBlock, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    state = state or {}
    y, first = step(layer.conv1, silu(layer.norm1(x)), state.get("conv1"), last)
    y = F.dropout(silu(layer.norm2(y)), layer.dropout, layer.training)
    y, second = step(layer.conv2, y, state.get("conv2"), last)
    shortcut = whole(layer.nin_shortcut, x) if layer.widens else x
    return add(shortcut, y), None if first is None else {"conv1": first, "conv2": second}


def _spatial_block(layer: SpatialBlock, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    # Each of the two convolutions sees one row further.
    return (
        map_frames(
            lambda frames: _residual_block(layer, frames, None, True)[0],
            x,
            halo=2,
            growth=_growth(layer.nin_shortcut.weight) if layer.widens else 1.0,
            overwrite=not layer.widens,
        ),
        None,
    )


def _temporal_block(layer: TemporalBlock, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    h = x.shape[2]
    rows = chunk_size(x, 2, growth=4.0)  # all intermediate tensors of a strip of rows fit in the cache
    if rows >= h:
        return _residual_block(layer, x, state, last)
    states = []
    for top, bottom in chunk_ranges(h, rows):
        strip, new = _residual_block(layer, x[:, :, top:bottom], split_rows(state, top, bottom), last)
        x[:, :, top:bottom] = strip
        states.append(new)
    return x, join_rows(states)


def _frame_attention(layer: FrameAttention, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return map_frames(lambda frames: _attention(layer, frames), x, halo=None), None


def _attention(layer: FrameAttention, x: Tensor) -> Tensor:
    y, (b, t, h, w, _) = layer.norm(x), x.shape
    q, k, v = (rearrange(whole(conv, y), "b t h w c -> (b t) 1 (h w) c") for conv in (layer.q, layer.k, layer.v))
    y = F.scaled_dot_product_attention(q, k, v)
    return add(x, whole(layer.proj_out, rearrange(y, "(b t) 1 (h w) c -> b t h w c", b=b, t=t, h=h, w=w)))


def _middle(layer: Middle, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    return step_through(layer.layers(), x, state, last)


def _growth(weight: Tensor) -> float:
    """The size of a convolution's output, relative to its input; at least 1."""
    return max(1.0, weight.shape[0] / weight.shape[1])


KERNELS: dict[type[StreamLayer], Callable[[Any, Tensor, State, bool], tuple[Tensor, State]]] = {
    CausalKey: _causal_key,
    TimeConv: _time_conv,
    PointConv: _point_conv,
    SpatialConv: _spatial_conv,
    ResidualBlock: _residual_block,
    SpatialBlock: _spatial_block,
    TemporalBlock: _temporal_block,
    FrameAttention: _frame_attention,
    Middle: _middle,
    SpatialDownsample: _spatial_downsample,
    SpatialUpsample: _spatial_upsample,
    TemporalDownsample: _temporal_downsample,
    TemporalUpsample: upsample_in_time,
}
