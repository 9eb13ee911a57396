"""Resampling in space and time: a convolution merged with an average or an interpolation.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.tokenizer.network.chunking import add, chunk_ranges, chunk_size, may_overwrite
from vidtok_plugin.tokenizer.network.layers import (
    FrameLayer,
    SpatialConv,
    State,
    StreamLayer,
    TimePadding,
    bare,
    conv_frames,
    time_conv,
)


class SpatialDownsample(StreamLayer):
    """Halves height and width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c, stride=2)

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        return self.conv.step(x, state, last)


class SpatialUpsample(FrameLayer):
    """Doubles height and width: nearest neighbour, then a 3x3 conv."""

    halo = 1
    growth = 9.0
    zoom = 2.0

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c)

    def on_frames(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return self._by_products(x)
        # A GPU multiplies so fast that moving the products would take longer: 1.5 to 1.8 times as long on an H200.
        return self.conv.on_frames(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))

    def _by_products(self, x: Tensor) -> Tensor:
        """The same with a quarter of the arithmetic.

        Each of the kernel's nine places is a 1x1 conv, which commutes with repeating pixels: so these come first, on a
        quarter of the pixels, and their products are then repeated, shifted and added.
        """
        b, t, h, w, c = x.shape
        weight = rearrange(self.conv.weight, "o i kh kw -> (kh kw o) i")
        products = F.linear(x.reshape(b * t * h * w, c), weight).view(b * t, h, w, 3, 3, c)
        columns = doubled(products.unbind(4), dim=2)
        del products
        y = doubled(columns.unbind(4), dim=1)  # (b t, h, 2, w, 2, c)
        return add(self.conv.bias.to(y.dtype), y.reshape(b, t, 2 * h, 2 * w, c))


def doubled(products: Sequence[Tensor], *, dim: int) -> Tensor:
    """What a kernel of 3 gives along `dim` after each place is repeated there, with zeros around the ends.

    products: of the kernel's three places with each place of the input.
    Returns the pairs of places, in a dimension of their own behind `dim`.
    """
    first, middle, last = products
    # Places 2i and 2i + 1 see places i - 1, i, i and i, i, i + 1.
    if may_overwrite():
        pairs = middle.new_empty(*middle.shape[: dim + 1], 2, *middle.shape[dim + 1 :])
        even, odd = pairs.select(dim + 1, 0), pairs.select(dim + 1, 1)
        torch.add(middle, last, out=even)
        torch.add(first, middle, out=odd)
    else:
        even, odd = middle + last, first + middle
    inner = middle.shape[dim] - 1
    even.narrow(dim, 1, inner).add_(first.narrow(dim, 0, inner))
    odd.narrow(dim, 0, inner).add_(last.narrow(dim, 1, inner))
    return pairs if may_overwrite() else torch.stack([even, odd], dim=dim + 1)


class TemporalDownsample(StreamLayer):
    """Halves the frame rate: `a * average + (1 - a) * conv`, both with kernel 3 and stride 2 in time: one conv."""

    def __init__(self, c: int, *, padding: TimePadding) -> None:
        super().__init__()
        self.conv = time_conv(c, c, padding=padding, stride=2)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        conv = bare(self.conv)
        a = torch.sigmoid(self.mix_factor)
        weight = ((1 - a) * conv.weight).contiguous()
        own_channel(weight)[:, :, 1, 1].add_(a / 3)  # the average of a channel's three frames
        return conv.convolve(x, state, last, weight, (1 - a) * conv.bias)


def own_channel(weight: Tensor) -> Tensor:
    """The part of a kernel (c, c, 3, 3, 3) that takes each channel to itself, as a view (c, 3, 3, 3)."""
    return weight.view(-1, *weight.shape[2:])[:: len(weight) + 1]


class TemporalUpsample(StreamLayer):
    """Doubles the frame rate: interpolates to `u`, then `a * u + (1 - a) * conv(u)`, which is one conv.

    v1.1 interpolates linearly, the frames of the first latent (`first_frames` of them at this level) on their own and
    the rest on their own, so that frame i of the rest needs frame i + 1: a stream holds it back until that comes.

    Each of the kernel's three frames is a conv of frames alone, which commutes with interpolation in time: so these
    come first, on half of the frames, and their products are then interpolated, shifted and added.

    State: "carry", what the frames before add to the next two; for v1.1 also "seen", the products of the last frame of
    the rest, whose second half is still to come, one after the other in the channels; no frame while there is no rest.
    """

    def __init__(self, c: int, *, padding: TimePadding, first_frames: int) -> None:
        super().__init__()
        self.padding, self.first_frames = padding, first_frames
        self.conv = time_conv(c, c, padding=padding)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        weight, bias = self._kernel()
        (b, t, h, w, c), count = x.shape, self.count(x.shape[1], state, last)
        frames, first = chunk_size(x, 1), self.first_frames
        strips = list(
            chunk_ranges(h, chunk_size(x[:, :frames], 2, growth=8.0))
        )  # all that is made of one fits the cache
        if max(frames, first) >= t and len(strips) == 1:
            return self._doubled(self._products(x, weight, bias, last), state, last)
        y, done = None, 0
        states = [state and {name: part[:, :, top:bottom] for name, part in state.items()} for top, bottom in strips]
        for start, end in chunk_ranges(t, frames, first=first):
            ends = last and end == t
            products = self._products(x[:, start:end], weight, bias, ends)
            y = products[0].new_empty(b, count, h, w, c) if y is None else y
            for i, (top, bottom) in enumerate(strips):
                strip, states[i] = self._doubled([part[:, :, top:bottom] for part in products], states[i], ends)
                y[:, done : done + strip.shape[1], top:bottom] = strip
            done += strip.shape[1]
            del products  # before the next are made
        assert y is not None
        return y, None if last else {name: torch.cat([part[name] for part in states], dim=2) for name in states[0]}

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias of `a * u + (1 - a) * conv(u)`."""
        conv = bare(self.conv)
        a = torch.sigmoid(self.mix_factor)
        weight = ((1 - a) * conv.weight).contiguous()
        now = 2 if self.padding.causal else 1  # where the kernel sees the frame that it makes
        own_channel(weight)[:, now, 1, 1].add_(a)
        return weight, (1 - a) * conv.bias

    def count(self, t: int, state: State, last: bool) -> int:
        """How many frames `t` more give: of two for each, one is held back while the next frame is unknown."""
        symmetric = self.padding is TimePadding.SYMMETRIC
        if self.padding is TimePadding.ZEROS:
            return 2 * t
        begun = state is not None and (symmetric or state["seen"].shape[1] > 0)
        waits = not last and (symmetric or begun or t > (self.first_frames if state is None else 0))
        return 2 * t + begun - waits

    def _products(self, x: Tensor, weight: Tensor, bias: Tensor, last: bool) -> list[Tensor]:
        """What each of the kernel's frames, oldest first, makes of each frame."""
        if last and self.padding is TimePadding.SYMMETRIC:
            x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        return [conv_frames(x, tap, bias if k == 2 else None) for k, tap in enumerate(weight.unbind(2))]

    def _doubled(self, products: list[Tensor], state: State, last: bool) -> tuple[Tensor, State]:
        """The products interpolated, shifted and added."""
        if self.padding is TimePadding.FIRST_FRAME:
            seen = None if state is None else state["seen"].chunk(3, dim=-1)
            steps = [self._linear(part, seen and seen[k], last) for k, part in enumerate(products)]
            y, carry = self._shifted_sum([part for part, _ in steps], state and state["carry"])
            if last:
                return y, None
            return y, {"carry": carry, "seen": torch.cat([part for _, part in steps], dim=-1)}
        doubled_products = [part.repeat_interleave(2, dim=1) for part in products]
        y, carry = self._shifted_sum(doubled_products, state and state["carry"])
        if self.padding is TimePadding.SYMMETRIC:  # its frames are those of a causal kernel, one frame later
            y = y[:, 1 if state is None else 0 : -1 if last else None]
        return y, None if last else {"carry": carry}

    def _shifted_sum(self, products: list[Tensor], carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frame j: the kernel's oldest frame with frame j - 2, its middle one with j - 1, its newest one with j.

        carry: what the frames before add to the first two; returns what these add to the next two.
        """
        oldest, middle, y = products
        n = y.shape[1]
        if carry is None:
            front = [oldest[:, :1], middle[:, :1]]
            if self.padding is not TimePadding.FIRST_FRAME:
                front = [torch.zeros_like(part) for part in front]
            carry = torch.cat([front[0] + front[1], front[0]], dim=1)
        if n == 0:
            return y, carry
        before = oldest[:, -2:-1] if n > 1 else carry[:, 1:]
        new_carry = torch.cat([middle[:, -1:] + before, oldest[:, -1:]], dim=1)
        y[:, 1:].add_(middle[:, :-1])
        y[:, 2:].add_(oldest[:, :-2])
        y[:, :2].add_(carry[:, :n])
        return y, new_carry

    def _linear(self, x: Tensor, seen: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """The final frames of linear interpolation (`align_corners=False`), and the last frame of the rest."""
        if seen is not None:
            window = torch.cat([seen, x], dim=1)
            return between(window, start=seen.shape[1] == 0, end=last), window[:, -1:]
        first, rest = x[:, : self.first_frames], x[:, self.first_frames :]  # the first latent's come whole at once
        y = torch.cat([between(first, start=True, end=True), between(rest, start=True, end=last)], dim=1)
        return y, rest[:, -1:]


def between(x: Tensor, *, start: bool, end: bool) -> Tensor:
    """Two frames between each frame and the next, at a quarter and three quarters of the way.

    start, end: whether the first frame comes before them, and the last one behind them.
    """
    left, right = x[:, :-1], x[:, 1:]
    if may_overwrite():
        pairs = x.new_empty(*left.shape[:2], 2, *left.shape[2:])
        for place, weight in enumerate((0.25, 0.75)):
            torch.lerp(left, right, weight, out=pairs[:, :, place])
    else:
        pairs = torch.stack([torch.lerp(left, right, 0.25), torch.lerp(left, right, 0.75)], dim=2)
    frames = pairs.flatten(1, 2)
    if not start and not end:
        return frames
    return torch.cat([x[:, :1][:, : int(start)], frames, x[:, -1:][:, : int(end)]], dim=1)
