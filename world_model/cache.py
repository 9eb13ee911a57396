"""The keys and values of past tokens, preallocated, so that each new token attends to them without
recomputing.

Shapes: l layers, b rollouts, k heads, n tokens held at most, e width of a head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's share of a cache, at the position of the call under way."""

    keys: Tensor  # (b, k, n, e)
    values: Tensor  # (b, k, n, e)
    length: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values after the past ones; -> all of them, as views (b, k, length + new, e)."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True, kw_only=True)
class TransformerCache:
    """All layers' keys and values of `length` tokens. The caller owns it; a step writes behind the past and
    returns a cache that is longer, whose buffers are the same: go on from the newest only, or from a
    `fork`."""

    keys: Tensor  # (l, b, k, n, e)
    values: Tensor  # (l, b, k, n, e)
    length: int = 0

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TransformerCache":
        shape = (layers, batch, heads, capacity, head_width)
        return cls(
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
        )

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layer(self, index: int) -> LayerCache:
        return LayerCache(keys=self.keys[index], values=self.values[index], length=self.length)

    def advanced(self, count: int) -> "TransformerCache":
        """The same buffers, `count` tokens on."""
        return replace(self, length=self.length + count)

    def check_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise ValueError(
                f"TransformerCache: {count} more tokens don't fit: it holds {self.length} of at most "
                f"{self.capacity}; start a new cache from the newest latent steps."
            )

    def rewound(self) -> "TransformerCache":
        """The same buffers, empty."""
        return replace(self, length=0)

    def fork(self) -> "TransformerCache":
        """A copy that goes on independently."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone())
