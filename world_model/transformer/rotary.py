"""Rotary positions over (latent step, row, column): each axis turns its own share of a head's channels.

RoPE as of Su et al. (arXiv 2104.09864), by axes. Attention then depends on differences of step, row and
column alone.

Shapes: n slots in raster order (step, row, column), e width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Angles' cosines and sines of n slots."""

    cos: Tensor  # (n, e), the same for both channels of a pair
    sin: Tensor  # (n, e), negative for the first

    def at(self, positions: slice | Tensor) -> "Rotation":
        """Of some of the slots."""
        if isinstance(positions, slice):  # views, at a fraction of the time
            start, count = positions.start, positions.stop - positions.start
            return Rotation(self.cos.narrow(0, start, count), self.sin.narrow(0, start, count))
        return Rotation(self.cos[positions], self.sin[positions])

    def over_slots(self) -> "Rotation":
        """(n, e) -> (n, 1, 1, e), for what has axes between slots and channels."""
        return Rotation(self.cos[:, None, None], self.sin[:, None, None])

    def over_heads(self, heads: int) -> "Rotation":
        """(n, 1, 1, e) -> (n, 1, k, e) in memory, over which products are faster than over channels alone."""
        cos, sin = (table.expand(-1, -1, heads, -1).contiguous() for table in (self.cos, self.sin))
        return Rotation(cos, sin)

    def __call__(self, x: Tensor) -> Tensor:
        """Turn x (..., n, e), or (..., n, ., k, e) by angles (n, 1, 1, e) or (n, 1, k, e)."""
        cos, sin = self.cos, self.sin
        if cos.dtype != x.dtype:
            cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def grid_rotation(steps: int, height: int, width: int, head_width: int, base: float = 100.0) -> Rotation:
    """The rotation of every slot of a grid.

    A third of the channel pairs (rounded down) belongs to the rows, as many to the columns, the rest to the
    steps. On an axis the wavelengths grow geometrically from 2 pi to nearly 2 pi * base positions.
    """
    pairs = head_width // 2
    if head_width % 2 or pairs < 3:
        raise ValueError(
            "grid_rotation: the width of a head must be even and at least 6 (a channel pair for each axis), "
            f"got {head_width}; change the model's width or number of heads."
        )
    spatial = pairs // 3
    shares = (pairs - 2 * spatial, spatial, spatial)
    positions = torch.cartesian_prod(torch.arange(steps), torch.arange(height), torch.arange(width)).view(-1, 3)
    angles = []
    for axis, share in enumerate(shares):
        frequencies = base ** (-torch.arange(share, dtype=torch.float64) / share)
        angles.append(positions[:, axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))
