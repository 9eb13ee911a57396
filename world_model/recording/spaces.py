"""The spaces of a recorded environment: its actions as rows of numbers and back, and the state in its observations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from vidtok_plugin.video.action_space import kind_and_size
from world_model.action_spaces import describe_space, flatten_action, unflatten_action

Row = int | np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedActions:
    """The actions of an environment as an episode keeps them.

    A `Discrete` space's are integers from 0 on, whatever its `start`. Those of other spaces are flat vectors, float32
    `(a,)`; see `flatten_action`.

    Raises:
        ValueError: the space, or a part of it, has no fixed size.
    """

    space: Space[Any]

    def __post_init__(self) -> None:
        describe_space(self.space, "record")

    @cached_property
    def described(self) -> dict[str, Any]:
        """The description of the space."""
        return describe_space(self.space)

    @property
    def discrete(self) -> bool:
        return isinstance(self.space, spaces.Discrete)

    @cached_property
    def size(self) -> int:
        """The number of choices, or of components."""
        return kind_and_size(self.described)[1]

    @property
    def first(self) -> Row:
        """In the place of the action that led to the first frame, which there is not."""
        return 0 if self.discrete else np.zeros(self.size, np.float32)

    def checked(self, action: Any) -> Any:
        """The action in the types of its space, with the precision that is kept of it.

        Raises:
            ValueError: it is none of the space.
        """
        typed = _typed(self.space, action)
        if typed is None or not self.space.contains(typed):
            raise ValueError(
                f"record: the policy must return an action of {self.space}, got {_short(action)}; correct the policy."
            )
        return typed

    def row(self, action: Any) -> Row:
        """An action of the space as it is kept."""
        flat = flatten_action(self.described, action, "record")
        return int(flat[0]) if self.discrete else flat

    def action(self, row: Any) -> Any:
        """The action that was kept as a row."""
        return self.checked(unflatten_action(self.described, np.atleast_1d(row)))

    def rows(self, rows: list[Row]) -> np.ndarray:
        """Rows as an episode's array: int64 `(t,)` or float32 `(t, a)`."""
        return np.array(rows, np.int64 if self.discrete else np.float32)

    def description(self) -> dict[str, Any]:
        """For an episode's JSON."""
        kind, size = kind_and_size(self.described)
        return {"kind": kind, "size": size, "space": self.described}


def _typed(space: Space[Any], action: Any) -> Any:
    """The action with the types that the space's `contains` asks for; None if it cannot be one of its."""
    if isinstance(space, spaces.Dict):
        if not isinstance(action, Mapping) or action.keys() != space.spaces.keys():
            return None
        named = {name: _typed(part, action[name]) for name, part in space.spaces.items()}
        return None if any(part is None for part in named.values()) else named
    if isinstance(space, spaces.Tuple):
        if not isinstance(action, tuple | list) or len(action) != len(space.spaces):
            return None
        parts = tuple(_typed(part, value) for part, value in zip(space.spaces, action, strict=True))
        return None if any(part is None for part in parts) else parts
    try:
        values = np.asarray(action)
    except ValueError:  # sequences of several lengths
        return None
    if isinstance(space, spaces.Discrete):
        return int(values) if values.shape == () and values.dtype.kind in "iub" else None
    if not isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        return action
    kinds = "iufb" if space.dtype.kind == "f" else "iub"
    if values.shape != space.shape or values.dtype.kind not in kinds:
        return None
    if isinstance(space, spaces.Box):  # before the conversion, which may wrap or round values
        wide, low, high = (bound.astype(np.float64) for bound in (values, space.low, space.high))
        if not ((low <= wide) & (wide <= high)).all():
            return None
        kept = values.astype(np.float32) if space.dtype.kind == "f" else values
        return np.clip(kept.astype(space.dtype), space.low, space.high)
    typed = values.astype(space.dtype)
    return typed if (typed == values).all() else None


def _short(action: Any) -> str:
    text = repr(action)
    return text if len(text) <= 100 else f"{text[:100]}..."


@dataclass(frozen=True, kw_only=True)
class StatePart:
    """A one-dimensional `Box` in an observation: the keys that lead to it, and its length."""

    keys: tuple[str | int, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class RecordedState:
    """The low-dimensional state in observations: their one-dimensional `Box` parts, concatenated."""

    parts: tuple[StatePart, ...]

    @classmethod
    def of(cls, space: Space[Any]) -> "RecordedState | None":
        """None if the space has no such part."""
        parts = tuple(_vectors(space, ()))
        return cls(parts=parts) if parts else None

    def read(self, observation: Any) -> np.ndarray:
        """The state in an observation, float32 `(s,)`."""
        vectors = []
        for part in self.parts:
            value = observation
            for key in part.keys:
                value = value[key]
            vectors.append(np.asarray(value, np.float32).reshape(part.size))
        return np.concatenate(vectors)

    def description(self) -> dict[str, Any]:
        """For an episode's JSON: its `size`, and the `parts` by name if the observation has several."""
        named = [{"name": ".".join(map(str, part.keys)), "size": part.size} for part in self.parts if part.keys]
        return {"size": sum(part.size for part in self.parts)} | ({"parts": named} if named else {})


def _vectors(space: Space[Any], keys: tuple[str | int, ...]) -> Iterator[StatePart]:
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0:
        yield StatePart(keys=keys, size=space.shape[0])
    nested: Any = ()
    if isinstance(space, spaces.Dict):
        nested = space.spaces.items()
    elif isinstance(space, spaces.Tuple):
        nested = enumerate(space.spaces)
    for key, part in nested:
        yield from _vectors(part, (*keys, key))
