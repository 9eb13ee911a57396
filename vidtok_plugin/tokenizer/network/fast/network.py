"""Runs a network on the fast path: by chunks of frames within it, and by groups of frames for long clips.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vidtok_plugin.tokenizer.network.fast.chunking import chunk_ranges, chunk_size, map_frames, silu, step_by_chunks
from vidtok_plugin.tokenizer.network.fast.dispatch import group_pixels, inference
from vidtok_plugin.tokenizer.network.fast.steps import Layers, step_through, whole
from vidtok_plugin.tokenizer.network.fast.upsampling import upsampled_frames
from vidtok_plugin.tokenizer.network.layers import ChannelNorm, State, StreamLayer
from vidtok_plugin.tokenizer.network.resampling import SpatialUpsample, TemporalUpsample


class Network(Protocol):
    """The interface of `encoder_decoder.Network` that the fast path uses."""

    causal: bool
    group_frames: int
    group_volume: int
    compiled: Callable[[Tensor], Tensor] | None
    norm_out: ChannelNorm
    conv_out: StreamLayer

    def layers(self) -> Layers: ...

    def body(self, x: Tensor) -> Tensor: ...


def forward(network: Network, x: Tensor) -> Tensor:
    """A whole clip."""
    if network.compiled is not None or not inference():
        body = network.body if network.compiled is None else network.compiled
        return whole(network.conv_out, _norm_silu(network.norm_out, body(x)))
    return step(network, x, None, last=True)[0]


def step(network: Network, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """A step of a stream. Without gradients, a causal network takes a long one group by group, in the memory of one
    group."""
    t = x.shape[1]
    size = _frames_at_once(network, x) if network.causal and inference() else max(1, t)
    groups = []
    for start, end in chunk_ranges(t, size):
        y, state = _step_group(network, x[:, start:end], state, last and end == t)
        groups.append(y)
    return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1), state


def _step_group(network: Network, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    states: dict[str, State] = {}
    for chain in chains(network.layers()):
        x, new = _step_chain(chain, x, state, last)
        states |= new or {}
    x, new = step_through([("conv_out", network.conv_out)], _norm_silu(network.norm_out, x), state, last)
    return x, None if new is None else states | new


def _frames_at_once(network: Network, x: Tensor) -> int:
    b, _, h, w, _ = x.shape
    return network.group_frames * max(1, group_pixels(x) // max(1, b * h * w * network.group_volume))


def _norm_silu(norm: ChannelNorm, x: Tensor) -> Tensor:
    return map_frames(lambda frames: silu(norm(frames)), x, halo=0, overwrite=True)


def chains(layers: Layers) -> list[Layers]:
    """The layers, in lists that run together chunk by chunk: upsampling with the block after it, since the tensor
    between the two is the largest of all."""
    result: list[Layers] = []
    continues = False
    for name, layer in layers:
        if continues:
            result[-1].append((name, layer))
        else:
            result.append([(name, layer)])
        continues = isinstance(layer, SpatialUpsample | TemporalUpsample)
    return result


def _step_chain(layers: Layers, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """`step_through` by chunks of frames, so that the tensor between two layers is never complete in memory."""
    t = x.shape[1]
    frames, first, outputs = chunk_size(x, 1, growth=4.0), 1, t
    for name, layer in layers:
        if isinstance(layer, TemporalUpsample):
            first = layer.first_frames
            outputs = upsampled_frames(layer, t, None if state is None else state.get(name), last)
    if max(frames, first) >= t or len(layers) == 1:
        return step_through(layers, x, state, last)
    return step_by_chunks(partial(step_through, layers), x, state, last, size=frames, outputs=outputs, first=first)
