"""VidTok's encoder and decoder.

Shapes: video and latents are `(b, t, h, w, c)`. Parameter names are those of the published checkpoints.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network import fast
from vidtok_plugin.tokenizer.network.blocks import Middle, SpatialBlock, TemporalBlock
from vidtok_plugin.tokenizer.network.layers import (
    ChannelNorm,
    State,
    StreamLayer,
    bare,
    run,
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


class Network(StreamLayer):
    """Base of encoder and decoder: a stack of layers, then a norm, SiLU and a convolution.

    A layer's forward hooks see its input and output for the whole clip, whatever its length: a network whose layers
    have hooks runs without the fast path. Streams call `step`, which has no hooks.

    group_frames: the smallest number of input frames that gives whole output frames.
    group_volume: pixels of video that such a group covers at each position of its frames.
    recompute: keep only what passes between the layers, and compute what is inside each layer again in the backward
        pass (activation checkpointing, arXiv 1604.06174). A setting, not part of the state_dict.
    compiled: `body` after `torch.compile`, if `VidTok.compile_networks` was called. The last norm and convolution are
        outside it and are never recomputed: an objective takes gradients at the last weight alone.
    """

    norm_out: ChannelNorm
    conv_out: StreamLayer

    def __init__(self, *, causal: bool, group_frames: int, group_volume: int) -> None:
        super().__init__()
        self.causal, self.group_frames, self.group_volume = causal, group_frames, group_volume
        self.recompute = False
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def layers(self) -> list[tuple[str, StreamLayer]]:
        """All layers before the norm, by name, in the order in which they run."""
        raise NotImplementedError

    def body(self, x: Tensor) -> Tensor:
        """The layers on a whole clip. Encoder and decoder each define it: torch.compile counts graphs by function, and
        generalizes over the sizes that it has seen there."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip."""
        if fast.fast_path(self):
            return fast.forward(self, x)
        return self.conv_out(F.silu(self.norm_out(self.body(x))))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        if fast.fast_step():
            return fast.step(self, x, state, last)
        state = state or {}
        x, states = step_through(self.layers(), x, state, last)
        x, out = run(self.conv_out, F.silu(self.norm_out(x)), state.get("conv_out"), last)
        return x, None if last else {**states, "conv_out": out}

    def _through_layers(self, x: Tensor) -> Tensor:
        whole = fast.whole if fast.fast_path(self) else _whole
        recompute = self.recompute and torch.is_grad_enabled()
        for _, layer in self.layers():
            x = checkpoint(whole, layer, x, use_reentrant=False) if recompute else whole(layer, x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: the compiled function would use the weights of the original."""
        return {**super().__getstate__(), "compiled": None}


def _whole(layer: StreamLayer, x: Tensor) -> Tensor:
    return layer(x)


class Encoder(Network):
    """Video `(b, t, h, w, 3)` -> latents before the regularizer `(b, T, H, W, c)`."""

    def __init__(self, arch: Architecture) -> None:
        f = arch.temporal_factor
        super().__init__(causal=arch.causal, group_frames=f, group_volume=f)
        padding, dropout = arch.time_padding, arch.dropout
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
        return self._through_layers(x)

    def layers(self) -> list[tuple[str, StreamLayer]]:
        layers: list[tuple[str, StreamLayer]] = [("conv_in", self.conv_in)]
        for i, (down, down_temporal) in enumerate(zip(self.down, self.down_temporal, strict=True)):
            layers += level_layers(i, down=down, down_temporal=down_temporal)
        layers.append(("mid", self.mid))
        return layers


class Decoder(Network):
    """Latents `(b, T, H, W, c)` -> frames `(b, T f, h, w, 3)`; a causal model's first `f - 1` are its padding."""

    def __init__(self, arch: Architecture) -> None:
        volume = arch.temporal_factor * arch.spatial_factor**2
        super().__init__(causal=arch.causal, group_frames=1, group_volume=volume)
        padding, dropout = arch.time_padding, arch.dropout
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
        return self._through_layers(x)

    def layers(self) -> list[tuple[str, StreamLayer]]:
        layers: list[tuple[str, StreamLayer]] = [("conv_in", self.conv_in), ("mid", self.mid)]
        for i in reversed(range(len(self.up))):
            layers += level_layers(i, up=self.up[i], up_temporal=self.up_temporal[i])
        return layers
