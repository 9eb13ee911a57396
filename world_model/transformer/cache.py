"""A cache of the keys and values of past tokens, preallocated.

Shapes: l layers, b rollouts, k heads, n tokens held at most, m new ones, e width of a head, p tokens of a shared past.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from world_model.transformer.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The positions of m tokens in a cache, and which of its first `end` positions each of them attends to."""

    positions: slice | Tensor  # of the m tokens, counted from the cache's first: a slice, or (m,) int64
    end: int
    mask: Tensor | None = None  # bool, (m, end) or (b, 1, m, end); None: all `end` positions
    causal: bool = False  # the tokens are the last of the `end`, and none attends to those after it

    def position_tensor(self, device: torch.device) -> Tensor:
        """`positions` as a tensor (m,)."""
        if isinstance(self.positions, Tensor):
            return self.positions
        return torch.arange(self.positions.start, self.positions.stop, device=device)

    def since(self, begin: Tensor) -> "Placement":
        """The same, but each row only attends to positions from its own `begin` (b,) on. Every token attends to
        itself, so that the softmax of a padding token is finite."""
        queries = self.position_tensor(begin.device)[:, None]
        keys = torch.arange(self.end, device=begin.device)
        visible = keys <= queries if self.causal else self.mask
        after_begin = keys >= begin[:, None, None, None]
        seen = after_begin if visible is None else after_begin & visible
        return replace(self, mask=seen | (keys == queries), causal=False)


class Segment(NamedTuple):
    """Keys and values of consecutive tokens, of one layer, or of all with a leading axis of layers.

    Several futures may share one past. Its batch is then a fraction of theirs, and each of its rows serves several
    consecutive rows of theirs.
    """

    keys: Tensor  # (b, k, n, e)
    values: Tensor  # (b, k, n, e)

    def num_tokens(self) -> int:  # no property: torch 2.9 and 2.10 do not compile those of named tuples
        return self.keys.shape[-2]

    @property
    def storage(self) -> int:
        """Identity of the buffer, to detect another cache."""
        return self.keys.untyped_storage()._cdata

    def layers(self) -> "list[Segment]":
        """Splits a segment of all layers by layer."""
        return [Segment(self.keys.select(0, i), self.values.select(0, i)) for i in range(len(self.keys))]


class LayerCache(NamedTuple):
    """One layer of a cache."""

    own: Segment
    shared: tuple[Segment, ...]

    def write(self, keys: Tensor, values: Tensor, at: Placement) -> tuple[Segment, ...]:
        """Write keys and values (b, k, m, e) at their positions; -> the segments of all positions before `at.end`."""
        own, before = self.own, sum(segment.num_tokens() for segment in self.shared)
        if isinstance(at.positions, slice):
            start, count = at.positions.start - before, at.positions.stop - at.positions.start
            own.keys.narrow(2, start, count).copy_(keys)
            own.values.narrow(2, start, count).copy_(values)
        else:
            own.keys.index_copy_(2, at.positions - before, keys)
            own.values.index_copy_(2, at.positions - before, values)
        end = at.end - before
        return *self.shared, Segment(keys=own.keys.narrow(2, 0, end), values=own.values.narrow(2, 0, end))


@dataclass(frozen=True, kw_only=True)
class TransformerCache:
    """All layers' keys and values of `length` tokens. The caller owns it.

    A step writes after the past and returns a longer cache with the same buffers, so only the newest cache may be
    continued. `fork` starts several futures that share the past without copying it; the forked cache may be continued,
    too.
    """

    own: Segment  # buffers (l, b, k, n, e), with room for n tokens after the shared past
    length: int = 0
    begin: Tensor | None = None  # (b,) int64: how many of each row's first tokens are padding; None: no padding
    shared: tuple[Segment, ...] = ()  # (l, b / futures, k, p, e) each, in order; never written again
    rotation: Rotation | None = None  # of its positions; None: the transformer's own

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
        """Tokens that fit, including the shared past."""
        return sum(segment.num_tokens() for segment in (*self.shared, self.own))

    @property
    def num_bytes(self) -> int:
        """Size of its own buffers, without the shared past."""
        return 2 * self.own.keys.numel() * self.own.keys.element_size()

    def layers(self) -> list[LayerCache]:
        """Views of each layer."""
        own, shared = self.own.layers(), [segment.layers() for segment in self.shared]
        return [LayerCache(own=segment, shared=tuple(past[i] for past in shared)) for i, segment in enumerate(own)]

    def advanced(self, count: int) -> "TransformerCache":
        """The same buffers, `count` tokens longer."""
        return replace(self, length=self.length + count)

    def check_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise ValueError(
                f"TransformerCache: {count} more tokens don't fit: it holds {self.length} of at most "
                f"{self.capacity}; start a new cache from the newest latent steps."
            )

    def next(self, count: int) -> Placement:
        """The next `count` tokens, each of which attends to those before it."""
        return Placement(positions=slice(self.length, self.length + count), end=self.length + count, causal=count > 1)

    def fork(self, futures: int = 1) -> "TransformerCache":
        """A cache of `futures` consecutive rows for each of this one's rows. They share its past without a copy, and
        have their own buffers for the tokens that follow."""
        if futures < 1:
            raise ValueError(f"TransformerCache: futures must be at least 1, got {futures}.")
        past = self.length - self._before
        shared = self.shared
        if past:
            own = self.own
            shared = (*shared, Segment(keys=own.keys[:, :, :, :past], values=own.values[:, :, :, :past]))
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
        return replace(twin, length=self.length, shared=shared, rotation=self.rotation)

    def moved(self, count: int, length: int, capacity: int | None = None) -> "TransformerCache":
        """The last `count` tokens, moved so that they end at `length`: within its buffers, or with `capacity` into new
        ones, without a shared past. `begin` and `rotation` stay and are the caller's to change."""
        layers, batch, heads, _, head_width = self.own.keys.shape
        own = self.own
        if capacity is not None:
            shape = (layers, batch, heads, capacity, head_width)
            own = Segment(*(torch.zeros(shape, device=held.device, dtype=held.dtype) for held in self.own))
        elif self.shared:
            raise ValueError("TransformerCache: tokens of a shared past can only be moved into new buffers.")
        segments = [*self.shared, Segment(*(held.narrow(3, 0, self.length - self._before) for held in self.own))]
        for i in range(layers):
            for target, sources in zip(own, zip(*segments, strict=True), strict=True):
                rows = [_repeated(source[i], batch) for source in sources]
                newest = torch.cat(rows, dim=2)[:, :, self.length - count :]  # a copy, since the two may overlap
                target[i].narrow(2, length - count, count).copy_(newest)
        return replace(self, own=own, length=length, shared=())

    def replace_rows(self, rows: Tensor, other: "TransformerCache") -> None:
        """Write the tokens of another cache, whose rows are the given ones (r,), over the last tokens of these rows."""
        if self.shared or other.shared:
            raise ValueError("TransformerCache: a shared past cannot be written; move the tokens into new buffers.")
        for held, new in zip(self.own, other.own, strict=True):
            place = held.narrow(3, self.length - other.length, other.length)
            place.index_copy_(1, rows, new.narrow(3, 0, other.length))

    @property
    def _before(self) -> int:
        """Tokens of the shared past."""
        return sum(segment.num_tokens() for segment in self.shared)


def _repeated(past: Tensor, batch: int) -> Tensor:
    """A past (b / futures, k, p, e) for each of its futures, (b, k, p, e)."""
    return past if len(past) == batch else past.repeat_interleave(batch // len(past), dim=0)
