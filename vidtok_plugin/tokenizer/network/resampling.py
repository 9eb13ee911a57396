"""Resampling in space and time: a convolution, mixed in time with an average or an interpolation.

Shapes: `x: (b, t, h, w, c)`, as in `layers.py`.
"""

import torch
from torch import Tensor, nn

from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.layers import (
    FrameLayer,
    SpatialConv,
    State,
    StreamLayer,
    bare,
    own,
    run,
    time_conv,
)


class SpatialDownsample(FrameLayer):
    """Halves height and width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c, stride=2)

    def on_frames(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialUpsample(FrameLayer):
    """Doubles height and width: nearest neighbor, then a 3x3 convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = SpatialConv(c, c)

    def on_frames(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class TemporalDownsample(StreamLayer):
    """Halves the frame rate: `a * average + (1 - a) * conv`, both with kernel 3 and stride 2 in time."""

    def __init__(self, c: int, *, padding: TimePadding) -> None:
        super().__init__()
        self.conv = time_conv(c, c, padding=padding, stride=2)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        a = torch.sigmoid(self.mix_factor)
        seen = bare(self.conv).window(x, state, last)
        y, state = run(self.conv, x, state, last)
        return a * seen.unfold(1, 3, 2).mean(-1) + (1 - a) * y, state


class TemporalUpsample(StreamLayer):
    """Doubles the frame rate: interpolates to `u`, then `a * u + (1 - a) * conv(u)`.

    v1.1 interpolates linearly: the frames of the first latent (`first_frames` of them at this level) on their own, and
    the rest on their own. Frame i of the rest needs frame i + 1, so a stream holds it back until that one comes.

    State: "conv", the state of the convolution; in v1.1 also "frame", the last frame of the rest, if there is one.
    The fast path keeps other tensors (`fast/upsampling.py`), so a stream stays on the path on which it began.
    """

    def __init__(self, c: int, *, padding: TimePadding, first_frames: int) -> None:
        super().__init__()
        self.padding, self.first_frames = padding, first_frames
        self.conv = time_conv(c, c, padding=padding)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def step(self, x: Tensor, state: State, last: bool) -> tuple[Tensor, State]:
        refuse_state_of_other_path(state, "conv")
        a, state = torch.sigmoid(self.mix_factor), state or {}
        if self.padding is TimePadding.FIRST_FRAME:
            u, frame = self._linear(x, state.get("frame"), last)
        else:
            u, frame = x.repeat_interleave(2, dim=1), None
        y, conv = run(self.conv, u, state.get("conv"), last)
        y = a * u + (1 - a) * y
        if last:
            return y, None
        return y, {"conv": conv} if frame is None else {"conv": conv, "frame": frame}

    def _linear(self, x: Tensor, frame: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """The frames of the interpolation that are known, and the last frame of the rest."""
        if frame is not None:
            rest = torch.cat([frame, x], dim=1)
            return interpolate(rest, start=frame.shape[1] == 0, end=last), own(rest[:, -1:])
        first, rest = x[:, : self.first_frames], x[:, self.first_frames :]
        u = torch.cat([interpolate(first, start=True, end=True), interpolate(rest, start=True, end=last)], dim=1)
        return u, own(rest[:, -1:])


def interpolate(x: Tensor, *, start: bool, end: bool) -> Tensor:
    """Linear interpolation to twice the frames (`align_corners=False`).

    Between each frame and the next there are two, at a quarter and three quarters of the way.
    start, end: whether the clip starts and ends here, with a copy of its first and its last frame.
    """
    left, right = x[:, :-1], x[:, 1:]
    between = torch.stack([torch.lerp(left, right, 0.25), torch.lerp(left, right, 0.75)], dim=2).flatten(1, 2)
    return torch.cat([x[:, :1][:, : int(start)], between, x[:, -1:][:, : int(end)]], dim=1)


def refuse_state_of_other_path(state: State, key: str) -> None:
    """A ValueError if `state` lacks `key`, which every state of this path's `TemporalUpsample` has."""
    if state is not None and key not in state:
        raise ValueError(
            "TemporalUpsample: a stream must stay on the path on which it began, inside reference_path() or outside, "
            f"since the two keep different tensors; expected {key!r} in the state, got {', '.join(sorted(state))}. "
            "Start a new stream."
        )
