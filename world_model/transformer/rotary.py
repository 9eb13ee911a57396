"""Rotary positions over latent step, row and column: each axis rotates some of a head's channels.

RoPE (Su et al., arXiv 2104.09864) along several axes. Attention then depends only on
differences of step, row and column.

Shapes: n positions in raster order (step, row, column), e width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosines and sines of the angles at n positions. Channel i rotates with channel i + e / 2."""

    cos: Tensor  # (n, e), equal for both channels of a pair
    sin: Tensor  # (n, e), negative for the first channel of a pair

    def at(self, positions: slice | Tensor) -> "Rotation":
        """The rotation at some of the positions."""
        if isinstance(positions, slice):  # views take a fraction of the time
            start, count = positions.start, positions.stop - positions.start
            return Rotation(self.cos.narrow(0, start, count), self.sin.narrow(0, start, count))
        return Rotation(self.cos[positions], self.sin[positions])

    def to(self, like: Tensor) -> "Rotation":
        """The same on the device of a tensor, in its dtype."""
        return Rotation(self.cos.to(like), self.sin.to(like))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (..., n, e)."""
        cos, sin = self.cos, self.sin
        if cos.dtype != x.dtype:
            cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def grid_rotation(
    steps: int, height: int, width: int, head_width: int, base: float = 100.0, *, first_step: int | Tensor = 0
) -> Rotation:
    """The rotation at every position of a grid, whose first step is `first_step`, a number or a tensor (1,).

    A third of the channel pairs (rounded down) encodes the row, the same number the column, and the rest the step.
    Along an axis the wavelengths grow geometrically from 2 pi to nearly 2 pi * base positions.
    """
    pairs = head_width // 2
    if head_width % 2 or pairs < 3:
        raise ValueError(
            "grid_rotation: the width of a head must be even and at least 6 (a channel pair for each axis), "
            f"got {head_width}; change the model's width or number of heads."
        )
    spatial = pairs // 3
    axis_pairs = (pairs - 2 * spatial, spatial, spatial)
    device = first_step.device if isinstance(first_step, Tensor) else None
    step, *axes = (torch.arange(size, device=device) for size in (steps, height, width))
    positions = torch.cartesian_prod(first_step + step, *axes).view(-1, 3)
    angles = []
    for axis, count in enumerate(axis_pairs):
        frequencies = base ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
        angles.append(positions[:, axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))
