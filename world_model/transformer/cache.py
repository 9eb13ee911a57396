"""The keys and values of past tokens, preallocated, so that each new token attends to them without recomputing.

Shapes: l layers, b rollouts, k heads, n tokens held at most, m new ones, e width of a head, p tokens of a shared past.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where m tokens stand in a cache, and which of its first `end` slots each of them sees."""

    positions: slice | Tensor  # of the m tokens, counted from the cache's first: a slice, or (m,) int64
    end: int
    mask: Tensor | None = None  # bool, (m, end) or (b, 1, m, end); None: all `end` slots
    causal: bool = False  # the tokens are the last of the `end` slots, and none sees those after it

    def slot_numbers(self, device: torch.device) -> Tensor:
        """`positions` as a tensor (m,)."""
        if isinstance(self.positions, Tensor):
            return self.positions
        return torch.arange(self.positions.start, self.positions.stop, device=device)

    def since(self, begin: Tensor) -> "Placement":
        """The same, but each row sees slots from its own `begin` (b,) on alone; and every token itself."""
        queries = self.slot_numbers(begin.device)[:, None]
        keys = torch.arange(self.end, device=begin.device)
        visible = keys <= queries if self.causal else self.mask
        counts = keys >= begin[:, None, None, None]
        seen = counts if visible is None else counts & visible
        return replace(self, mask=seen | (keys == queries), causal=False)


class Segment(NamedTuple):
    """Keys and values of consecutive tokens, of one layer or (with a first axis more) of all.

    Several futures may share one past: then its batch is a fraction of theirs, and each of its rows serves as many
    consecutive ones of theirs.
    """

    keys: Tensor  # (b, k, n, e)
    values: Tensor  # (b, k, n, e)

    @property
    def length(self) -> int:
        return self.keys.shape[-2]

    @property
    def storage(self) -> int:
        """By which buffers are told apart."""
        return self.keys.untyped_storage()._cdata

    def layers(self) -> "list[Segment]":
        """Of a segment of all layers, each one's."""
        return [Segment(self.keys.select(0, i), self.values.select(0, i)) for i in range(len(self.keys))]


class LayerCache(NamedTuple):
    """One layer's share of a cache."""

    own: Segment
    shared: tuple[Segment, ...]

    def write(self, keys: Tensor, values: Tensor, at: Placement) -> Segment:
        """Write (b, k, m, e) at their slots; -> its own keys and values that they may see, up to `at.end`."""
        own, before = self.own, sum(segment.length for segment in self.shared)
        if isinstance(at.positions, slice):
            start, count = at.positions.start - before, at.positions.stop - at.positions.start
            own.keys.narrow(2, start, count).copy_(keys)
            own.values.narrow(2, start, count).copy_(values)
        else:
            own.keys.index_copy_(2, at.positions - before, keys)
            own.values.index_copy_(2, at.positions - before, values)
        end = at.end - before
        return Segment(keys=own.keys.narrow(2, 0, end), values=own.values.narrow(2, 0, end))


@dataclass(frozen=True, kw_only=True)
class TransformerCache:
    """All layers' keys and values of `length` tokens. The caller owns it.

    A step writes behind the past and returns a cache that is longer, whose buffers are the same: go on from the newest
    only. `fork` begins several futures that share the past without copying it; what it was called on may go on too.
    """

    own: Segment  # buffers (l, b, k, n, e), n what there is room for behind the shared past
    length: int = 0
    begin: Tensor | None = None  # (b,) int64: rows whose first tokens are padding, and how many; None: no row
    shared: tuple[Segment, ...] = ()  # (l, b / futures, k, p, e) each, in order; never written again

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_width: int,
        begin: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TransformerCache":
        shape = (layers, batch, heads, capacity, head_width)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(own=Segment(keys=keys, values=values), begin=begin)

    @property
    def batch(self) -> int:
        return self.own.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that it has room for, the shared past included."""
        return sum(segment.length for segment in (*self.shared, self.own))

    @property
    def num_bytes(self) -> int:
        """Of its own buffers, without the past that it shares."""
        return 2 * self.own.keys.numel() * self.own.keys.element_size()

    def layers(self) -> list[LayerCache]:
        """Its layers' shares."""
        own, shared = self.own.layers(), [segment.layers() for segment in self.shared]
        return [LayerCache(own=part, shared=tuple(past[i] for past in shared)) for i, part in enumerate(own)]

    def advanced(self, count: int) -> "TransformerCache":
        """The same buffers, `count` tokens on."""
        return replace(self, length=self.length + count)

    def check_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise ValueError(
                f"TransformerCache: {count} more tokens don't fit: it holds {self.length} of at most "
                f"{self.capacity}; start a new cache from the newest latent steps."
            )

    def next(self, count: int) -> Placement:
        """The next `count` tokens, each of which sees those before it."""
        return Placement(positions=slice(self.length, self.length + count), end=self.length + count, causal=count > 1)

    def fork(self, futures: int = 1) -> "TransformerCache":
        """The cache of `futures` rows for each of this one's rows, side by side, which share its past as it is.

        They have buffers of their own for what comes; of the past nothing is copied.
        """
        if futures < 1:
            raise ValueError(f"TransformerCache: futures must be at least 1, got {futures}.")
        before = sum(segment.length for segment in self.shared)
        past = self.length - before
        shared = self.shared
        if past:
            ends = (self.own.keys[:, :, :, :past], self.own.values[:, :, :, :past])
            shared = (*shared, Segment(keys=ends[0], values=ends[1]))
        layers, batch, heads, capacity, head_width = self.own.keys.shape
        twin = TransformerCache.empty(
            layers=layers,
            batch=batch * futures,
            heads=heads,
            capacity=capacity - past,
            head_width=head_width,
            begin=None if self.begin is None else self.begin.repeat_interleave(futures),
            device=self.own.keys.device,
            dtype=self.own.keys.dtype,
        )
        return replace(twin, length=self.length, shared=shared)
