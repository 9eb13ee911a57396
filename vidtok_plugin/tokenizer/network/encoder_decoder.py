"""VidTok's encoder and decoder.

Shapes: video and latents come and go as `(b, t, h, w, c)`; parameter names are those of the published checkpoints.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.blocks import Middle, SpatialBlock, TemporalBlock
from vidtok_plugin.tokenizer.network.chunking import cat_into, chunk_ranges, chunk_size, map_frames, may_overwrite, silu
from vidtok_plugin.tokenizer.network.layers import (
    ChannelNorm,
    State,
    StreamLayer,
    bare,
    step_through,
    time_conv,
)
from vidtok_plugin.tokenizer.network.resampling import (
    SpatialDownsample,
    SpatialUpsample,
    TemporalDownsample,
    TemporalUpsample,
)


class Level(nn.Module):
    """The spatial or the temporal layers of one level: residual blocks, and a resampling layer if there is one."""

    def __init__(self, blocks: list[StreamLayer], *, down: StreamLayer | None = None, up: StreamLayer | None = None):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if down is not None:
            self.downsample = down
        if up is not None:
            self.upsample = up


def level_layers(i: int, **levels: nn.Module) -> list[tuple[str, StreamLayer]]:
    """The layers of level `i` in the order in which they run: the pairs of blocks, then the resampling layers."""
    blocks = zip(*(cast(nn.ModuleList, level.block) for level in levels.values()), strict=True)
    layers = [
        (f"{name}.{i}.block.{j}", cast(StreamLayer, block))
        for j, pair in enumerate(blocks)
        for name, block in zip(levels, pair, strict=True)
    ]
    for name, level in levels.items():
        for kind in ("downsample", "upsample"):
            if hasattr(level, kind):
                layers.append((f"{name}.{i}.{kind}", getattr(level, kind)))
    return layers


def step_in_parts(layers: list[tuple[str, StreamLayer]], x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
    """`step_through`, by some frames at a time: what is between two layers is never there whole.

    A whole clip that is taken at once goes through the layers' forward, and so through its hooks.
    """
    t = x.shape[1]
    frames, first, count = chunk_size(x, 1, growth=4.0), 1, t
    for name, layer in layers:
        if isinstance(layer, TemporalUpsample):
            first = layer.first_frames
            count = layer.count(t, None if state is None else state.get(name), last)
    if max(frames, first) >= t or len(layers) == 1:
        if state or not last:
            return step_through(layers, x, state, last)
        for _, layer in layers:
            x = layer(x)
        return x, None

    def parts() -> Iterator[Tensor]:
        nonlocal state
        for start, end in chunk_ranges(t, frames, first=first):
            part, state = step_through(layers, x[:, start:end], state, last and end == t)
            yield part
            del part  # before the next is made

    return cat_into(parts(), 1, count), state


GROUP_PIXELS = {"cpu": 2**19}  # of video, that inference takes through a network at once, by the device's type
OTHER_GROUP_PIXELS = 2**22


class Network(StreamLayer):
    """What encoder and decoder share: a stack of layers, then a norm, SiLU and a convolution.

    Where nothing is kept for gradients, layers may write into what the layers before made: what a forward hook gets of
    one is good until the hook returns. Long clips go through them in groups of frames by `step`, which has no hooks.

    recompute: keep of a whole clip only what goes from layer to layer, and compute what is inside each layer once more
        in the backward pass (activation checkpointing, arXiv 1604.06174). A setting, and no part of the state_dict.
    compiled: `body` by `torch.compile`, if it is. The end stays outside, and is never recomputed: an objective takes
        gradients at its weight alone, which then need nothing of the body.
    """

    norm_out: ChannelNorm
    conv_out: StreamLayer

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.recompute = False
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def layers(self) -> list[tuple[str, StreamLayer]]:
        raise NotImplementedError

    def chains(self) -> list[list[tuple[str, StreamLayer]]]:
        """The layers, in the groups that inference takes by `step_in_parts`."""
        return [[layer] for layer in self.layers()]

    def body(self, x: Tensor) -> Tensor:
        """The layers on a whole clip. Each network has a function of its own, since torch.compile counts the graphs of
        a function and generalises over what it has seen there."""
        raise NotImplementedError

    def frames_at_once(self, x: Tensor, pixels: int) -> int:
        """How many of the frames of `x` make up about so many pixels of video, in whole groups of the network's."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip. Without gradients a long one goes through a causal network group by group, as a stream does, on
        the memory of one group."""
        if self.compiled is not None or not may_overwrite():
            return self.conv_out(self._normed((self.compiled or self.body)(x)))
        t = x.shape[1]
        frames = self.frames_at_once(x, GROUP_PIXELS.get(x.device.type, OTHER_GROUP_PIXELS)) if self.causal else t
        groups, state = [], None
        for start, end in chunk_ranges(t, max(1, frames)):
            y, state = self.step(x[:, start:end], state, last=end == t)
            groups.append(y)
        return torch.cat(groups, dim=1)

    def _normed(self, x: Tensor) -> Tensor:
        return map_frames(lambda frames: silu(self.norm_out(frames)), x, halo=0, overwrite=True)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        state = state or {}
        states: dict[str, State] = {}
        for layers in self.chains():
            x, new = step_in_parts(layers, x, state, last)
            states |= new or {}
        x, out = step_in_parts([("conv_out", self.conv_out)], self._normed(x), state, last)
        return x, None if out is None else states | out

    def whole(self, x: Tensor) -> Tensor:
        """The layers on a whole clip, recomputed in the backward pass if so set."""
        recompute = self.recompute and torch.is_grad_enabled()
        for _, layer in self.layers():
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: its function would be that of the original, on the original's weights."""
        return {**super().__getstate__(), "compiled": None}


class Encoder(Network):
    """Video `(b, t, h, w, 3)` -> latents before the regularizer `(b, T, H, W, c)`."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(causal=arch.causal)
        padding, dropout = arch.time_padding, arch.dropout
        self.factor = arch.temporal_factor
        self.conv_in = time_conv(3, arch.ch, padding=padding)
        self.down, self.down_temporal = nn.ModuleList(), nn.ModuleList()
        width = arch.ch
        for i, mult in enumerate(arch.ch_mult):
            widths = [width] + [arch.ch * mult] * arch.num_res_blocks
            width = widths[-1]
            self.down.append(
                Level(
                    [SpatialBlock(a, b, dropout=dropout) for a, b in zip(widths, widths[1:], strict=False)],
                    down=SpatialDownsample(width) if i in arch.spatial_down else None,
                )
            )
            self.down_temporal.append(
                Level(
                    [TemporalBlock(b, padding=padding, dropout=dropout) for b in widths[1:]],
                    down=TemporalDownsample(width, padding=padding) if i in arch.temporal_down else None,
                )
            )
        self.mid = Middle(width, padding=padding, dropout=dropout)
        self.norm_out = ChannelNorm(width)
        parameters = 2 if arch.regularizer == "kl" else 1  # of each latent channel: mean and log variance, or value
        self.conv_out = time_conv(width, parameters * arch.latent_channels, padding=padding)

    def body(self, x: Tensor) -> Tensor:
        return self.whole(x)

    def frames_at_once(self, x: Tensor, pixels: int) -> int:
        return self.factor * max(1, pixels // max(1, len(x) * x.shape[2] * x.shape[3] * self.factor))

    def layers(self) -> list[tuple[str, StreamLayer]]:
        layers: list[tuple[str, StreamLayer]] = [("conv_in", self.conv_in)]
        for i, (down, down_temporal) in enumerate(zip(self.down, self.down_temporal, strict=True)):
            layers += level_layers(i, down=down, down_temporal=down_temporal)
        layers.append(("mid", self.mid))
        return layers


class Decoder(Network):
    """Latents `(b, T, H, W, c)` -> frames `(b, T f, h, w, 3)`; a causal model's first `f - 1` are its padding."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(causal=arch.causal)
        padding, dropout = arch.time_padding, arch.dropout
        self.volume = arch.temporal_factor * arch.spatial_factor**2  # pixels that a latent stands for
        deepest_first = sorted(arch.temporal_up, reverse=True)
        width = arch.ch * arch.ch_mult[-1]
        self.conv_in = time_conv(arch.latent_channels, width, padding=padding)
        self.mid = Middle(width, padding=padding, dropout=dropout)
        levels, temporal_levels = [], []
        for i in reversed(range(arch.depth)):
            widths = [width] + [arch.ch * arch.ch_mult[i]] * (arch.num_res_blocks + 1)
            width = widths[-1]
            levels.append(
                Level(
                    [SpatialBlock(a, b, dropout=dropout) for a, b in zip(widths, widths[1:], strict=False)],
                    up=SpatialUpsample(width) if i in arch.spatial_up else None,
                )
            )
            up = None
            if i in deepest_first:
                up = TemporalUpsample(width, padding=padding, first_frames=2 ** deepest_first.index(i))
            temporal_levels.append(
                Level([TemporalBlock(b, padding=padding, dropout=dropout) for b in widths[1:]], up=up)
            )
        self.up = nn.ModuleList(reversed(levels))
        self.up_temporal = nn.ModuleList(reversed(temporal_levels))
        self.norm_out = ChannelNorm(width)
        self.conv_out = time_conv(width, 3, padding=padding)

    @property
    def last_weight(self) -> nn.Parameter:
        """The kernel of the last convolution."""
        return bare(self.conv_out).weight

    def body(self, x: Tensor) -> Tensor:
        return self.whole(x)

    def frames_at_once(self, x: Tensor, pixels: int) -> int:
        return max(1, pixels // max(1, len(x) * x.shape[2] * x.shape[3] * self.volume))

    def layers(self) -> list[tuple[str, StreamLayer]]:
        layers: list[tuple[str, StreamLayer]] = [("conv_in", self.conv_in), ("mid", self.mid)]
        for i in reversed(range(len(self.up))):
            layers += level_layers(i, up=self.up[i], up_temporal=self.up_temporal[i])
        return layers

    def chains(self) -> list[list[tuple[str, StreamLayer]]]:
        """Upsampling and the block behind it are a chain: what is between them is the largest of all."""
        chains: list[list[tuple[str, StreamLayer]]] = []
        goes_on = False
        for name, layer in self.layers():
            if goes_on:
                chains[-1].append((name, layer))
            else:
                chains.append([(name, layer)])
            goes_on = isinstance(layer, SpatialUpsample | TemporalUpsample)
        return chains
