"""Descriptions of action spaces in JSON, and the flat vectors in which actions of several parts are kept.

A description is the tree of a gymnasium space. Its leaves are

    {"type": "Discrete", "n": 4, "start": 0}
    {"type": "MultiDiscrete", "nvec": [3, 5], "start": [0, 0]}
    {"type": "MultiBinary", "shape": [8]}
    {"type": "Box", "shape": [2], "low": -1.0, "high": [1.0, 2.0], "dtype": "float32"}   null: no bound

where `start` and `dtype` may be left out, and its inner nodes keep the order of their parts:

    {"type": "Dict", "spaces": [["keys", {...}], ["mouse", {...}]]}
    {"type": "Tuple", "spaces": [{...}, {...}]}

A flat action is float32 (a,): the parts in gymnasium's order (`gymnasium.spaces.flatten`), with the number of a choice,
from 0, in place of gymnasium's one-hot vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, prod
from typing import Any, Literal

import numpy as np

MAX_COMPONENTS = 2**16  # of a flat action
MAX_CHOICES = 1_000_000  # of all parts together
MAX_DEPTH = 16
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TYPES = {  # the keys that each needs and may have
    "Discrete": ({"n"}, {"start"}),
    "MultiDiscrete": ({"nvec"}, {"start"}),
    "MultiBinary": ({"shape"}, set[str]()),
    "Box": ({"shape"}, {"low", "high", "dtype"}),
    "Dict": ({"spaces"}, set[str]()),
    "Tuple": ({"spaces"}, set[str]()),
}


@dataclass(frozen=True, kw_only=True)
class Component:
    """One number of a flat action: a choice of several, or a continuous component with its bounds."""

    name: str  # where it is in the space, such as keys[3]
    choices: int = 0  # 0: it is continuous
    low: float = -inf
    high: float = inf

    @property
    def rule(self) -> str:
        """What its values must be."""
        return f"a whole number in 0..{self.choices - 1}" if self.choices else "finite in float32"


def components(space: Mapping[str, Any]) -> tuple[Component, ...]:
    """The numbers of a flat action of a described space, in order.

    Raises:
        ValueError: the description is invalid, or the space has no or too many parts.

    Example:
        >>> keys, mouse = {"type": "MultiBinary", "shape": [1]}, {"type": "Box", "shape": [1], "low": -1, "high": 1}
        >>> components({"type": "Dict", "spaces": [["keys", keys], ["mouse", mouse]]})
        (Component(name='keys[0]', choices=2, low=-inf, high=inf),
         Component(name='mouse[0]', choices=0, low=-1.0, high=1.0))
    """
    found: list[Component] = []
    for component in _components(space, "", 0):
        found.append(component)
        if len(found) > MAX_COMPONENTS:
            raise ValueError(f"action space: it must have at most {MAX_COMPONENTS} components, got more.")
    if not found:
        raise ValueError("action space: it must have at least one component, got none.")
    if (total := sum(component.choices for component in found)) > MAX_CHOICES:
        raise ValueError(f"action space: its parts must have at most {MAX_CHOICES} choices together, got {total}.")
    return tuple(found)


def kind_and_size(space: Mapping[str, Any]) -> tuple[Literal["discrete", "continuous", "mixed"], int]:
    """How actions of a described space are kept: as one choice of `size`, or as vectors of `size` components, which are
    continuous or `mixed` with choices.

    Raises:
        ValueError: the description is invalid.
    """
    found = components(space)
    if space["type"] == "Discrete":
        return "discrete", found[0].choices
    return ("mixed" if any(component.choices for component in found) else "continuous"), len(found)


def wrong_value(actions: np.ndarray, found: Sequence[Component]) -> tuple[tuple[int, ...], Component] | None:
    """The first number in flat actions (..., a) that its component can't have: its index, and the component; None if
    all are possible."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = actions.astype(np.float32)
        choices = np.array([component.choices for component in found])
        whole = (values == np.floor(values)) & (values >= 0) & (values < choices)
        possible = np.where(choices > 0, whole, np.isfinite(values))
    if possible.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~possible)[0])
    return index, found[index[-1]]


def _components(space: Any, name: str, depth: int) -> Iterator[Component]:
    kind = _checked_type(space, name, depth)
    if kind == "Dict":
        for key, part in _parts_of_dict(space, name):
            yield from _components(part, f"{name}.{key}" if name else key, depth + 1)
    elif kind == "Tuple":
        if not isinstance(space["spaces"], list | tuple):
            raise _invalid(name, "the spaces of a Tuple must be a list", space["spaces"])
        for i, part in enumerate(space["spaces"]):
            yield from _components(part, f"{name}[{i}]", depth + 1)
    elif kind == "Discrete":
        _integer(name, "start", space.get("start", 0))
        yield Component(name=name or "action", choices=_count(name, "n", space["n"]))
    elif kind == "MultiDiscrete":
        counts = _integers(name, "nvec", space["nvec"])
        if _integers(name, "start", space.get("start", np.zeros_like(counts).tolist())).shape != counts.shape:
            raise _invalid(name, f"start must have the shape of nvec, {counts.shape}", space["start"])
        for index, count in np.ndenumerate(counts):
            yield Component(name=_at(name, index), choices=_count(name, "nvec", int(count)))
    elif kind == "MultiBinary":
        for index in np.ndindex(_shape(name, space["shape"])):
            yield Component(name=_at(name, index), choices=2)
    else:
        shape = _shape(name, space["shape"])
        if (dtype := space.get("dtype", "float32")) not in DTYPES:
            raise _invalid(name, f"dtype must be one of {', '.join(DTYPES)}", dtype)
        low, high = (_bounds(name, space, key, prod(shape)) for key in ("low", "high"))
        for i, index in enumerate(np.ndindex(shape)):
            if not low[i] <= high[i]:
                raise _invalid(name, "low must be at most high", f"{low[i]} and {high[i]}")
            yield Component(name=_at(name, index), low=low[i], high=high[i])


def _checked_type(space: Any, name: str, depth: int) -> str:
    if not isinstance(space, Mapping) or space.get("type") not in TYPES:
        got = space.get("type") if isinstance(space, Mapping) else space
        raise _invalid(name, f"its type must be one of {', '.join(TYPES)}", got)
    kind: str = space["type"]
    if depth > MAX_DEPTH:
        raise _invalid(name, f"spaces must be nested at most {MAX_DEPTH} deep", "more")
    needed, optional = TYPES[kind]
    if not needed <= space.keys() - {"type"} <= needed | optional:
        rule = f"a {kind} must have {', '.join(needed)}"
        raise _invalid(name, rule + (f" and perhaps {', '.join(sorted(optional))}" if optional else ""), sorted(space))
    return kind


def _parts_of_dict(space: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    parts = space["spaces"]
    pairs = isinstance(parts, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in parts)
    if not pairs or not all(isinstance(key, str) for key, _ in parts):
        raise _invalid(name, 'the spaces of a Dict must be a list of pairs, such as ["mouse", {...}]', parts)
    keys = [key for key, _ in parts]
    if len(set(keys)) < len(keys):
        raise _invalid(name, "the keys of a Dict must differ", keys)
    return [(key, part) for key, part in parts]


def _at(name: str, index: Sequence[int]) -> str:
    """The name of an entry of an array, such as mouse[0]."""
    return f"{name or 'action'}[{','.join(map(str, index))}]" if index else name or "action"


def _integer(name: str, key: str, value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise _invalid(name, f"{key} must be an integer", value)
    return value


def _count(name: str, key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_CHOICES:
        raise _invalid(name, f"{key} must have integers in 1..{MAX_CHOICES}", value)
    return value


def _integers(name: str, key: str, values: Any) -> np.ndarray:
    """Nested lists of integers as an array."""
    try:
        array = np.array(values)
    except ValueError:  # ragged
        array = np.array(None)
    if array.ndim == 0 or array.dtype.kind != "i" or array.size > MAX_COMPONENTS:
        raise _invalid(name, f"{key} must be a list of at most {MAX_COMPONENTS} integers", values)
    return array


def _shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = isinstance(value, list | tuple) and all(type(size) is int and size >= 1 for size in value)
    if not sizes or prod(value) > MAX_COMPONENTS or len(value) > MAX_DEPTH:
        raise _invalid(name, f"shape must be a list of sizes with at most {MAX_COMPONENTS} entries in all", value)
    return tuple(value)


def _bounds(name: str, space: Mapping[str, Any], key: str, size: int) -> list[float]:
    """A bound of each component, infinite where there is none."""
    given, infinite = space.get(key), -inf if key == "low" else inf
    values = list(given) if isinstance(given, list | tuple) else [given] * size
    numbers = all(v is None or (type(v) in (int, float) and isfinite(v)) for v in values)
    if len(values) != size or not numbers:
        raise _invalid(name, f"{key} must be a number, {size} numbers, or null for no bound", given)
    return [infinite if value is None else float(value) for value in values]


def _invalid(name: str, rule: str, value: object) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return ValueError(f"action space{f' {name}' if name else ''}: {rule}, got {shown}.")
