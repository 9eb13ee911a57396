"""Actions of gymnasium spaces, nested or not, as the flat vectors that a world model takes, and back.

The order is that of `gymnasium.spaces.flatten`; a choice is a number from 0 in place of a one-hot vector. Keyboard and
mouse, for example:

    space = Dict(keys=MultiBinary(8), mouse=Box(-1, 1, (2,)))
    description = describe_space(space)                      # goes into an episode's JSON and a token store
    flatten_action(description, {"keys": keys, "mouse": moved})       # float32 (10,): the keys, then the mouse
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vidtok_plugin.video.action_space import components

if TYPE_CHECKING:
    from gymnasium import Space


def describe_space(space: "Space[Any]", who: str = "describe_space") -> dict[str, Any]:
    """The description of a gymnasium space of actions, as `vidtok_plugin.video.action_space` documents it.

    Raises:
        ValueError: the space, or a part of it, is of a type that has no fixed size, such as Text or Sequence.

    Example:
        >>> from gymnasium import spaces
        >>> describe_space(spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]))
        {'type': 'Tuple', 'spaces': [{'type': 'Discrete', 'n': 3},
            {'type': 'Box', 'shape': [2], 'low': -1.0, 'high': 1.0, 'dtype': 'float32'}]}
    """
    from gymnasium import spaces

    described: dict[str, Any]
    if isinstance(space, spaces.Discrete):
        described = {"type": "Discrete", "n": int(space.n)} | ({"start": int(space.start)} if space.start else {})
    elif isinstance(space, spaces.MultiDiscrete):
        described = {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        described |= {"start": space.start.tolist()} if space.start.any() else {}
    elif isinstance(space, spaces.MultiBinary):
        described = {"type": "MultiBinary", "shape": list(map(int, space.shape))}
    elif isinstance(space, spaces.Box):
        described = {"type": "Box", "shape": list(map(int, space.shape))}
        described |= {"low": _bound(space.low), "high": _bound(space.high), "dtype": str(space.dtype)}
    elif isinstance(space, spaces.Dict) and all(isinstance(key, str) for key in space.spaces):
        described = {"type": "Dict", "spaces": [[key, describe_space(part, who)] for key, part in space.spaces.items()]}
    elif isinstance(space, spaces.Tuple):
        described = {"type": "Tuple", "spaces": [describe_space(part, who) for part in space.spaces]}
    else:
        raise ValueError(
            f"{who}: actions must be of Discrete, MultiDiscrete, MultiBinary, Box, Tuple or Dict spaces, the last "
            f"with keys that are texts, got {space}; wrap the environment to give it one of these."
        )
    components(described)
    return described


def space_of(description: Mapping[str, Any]) -> "Space[Any]":
    """The gymnasium space of a description."""
    from gymnasium import spaces

    kind = description["type"]
    if kind == "Discrete":
        return spaces.Discrete(description["n"], start=description.get("start", 0))
    if kind == "MultiDiscrete":
        nvec = np.array(description["nvec"])
        return spaces.MultiDiscrete(nvec, start=np.array(description.get("start", np.zeros_like(nvec))))
    if kind == "MultiBinary":
        shape = tuple(description["shape"])
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Box":
        shape, dtype = tuple(description["shape"]), np.dtype(description.get("dtype", "float32"))
        found = components(description)
        low, high = ([getattr(component, name) for component in found] for name in ("low", "high"))
        return spaces.Box(_limit(low, shape, dtype), _limit(high, shape, dtype), shape, dtype.type)
    if kind == "Dict":
        return spaces.Dict([(key, space_of(part)) for key, part in description["spaces"]])
    return spaces.Tuple([space_of(part) for part in description["spaces"]])


def flatten_action(description: Mapping[str, Any], action: Any, who: str = "flatten_action") -> np.ndarray:
    """An action of a described space as a flat vector, float32 (a,).

    Raises:
        ValueError: a part is missing, has another shape, is no choice of those, or is not finite. Bounds of continuous
            parts are not checked: recordings may go beyond.

    Example:
        >>> parts = [["keys", {"type": "MultiBinary", "shape": [3]}], ["mouse", {"type": "Box", "shape": [2]}]]
        >>> flatten_action({"type": "Dict", "spaces": parts}, {"mouse": [0.5, -2], "keys": [0, 1, 1]}).tolist()
        [0.0, 1.0, 1.0, 0.5, -2.0]
    """
    return np.concatenate(_flat(description, action, "", who)).astype(np.float32)


def unflatten_action(description: Mapping[str, Any], flat: np.ndarray) -> Any:
    """The action of a described space that `flatten_action` gives as `flat` (a,), such as a planner's, as gymnasium's
    spaces sample it. Choices and integers are rounded."""
    action, rest = _unflat(description, np.asarray(flat))
    if len(rest):
        raise ValueError(f"unflatten_action: a flat action must have {len(flat) - len(rest)} numbers, got {len(flat)}.")
    return action


def _bound(values: np.ndarray) -> float | None | list[float | None]:
    """The bounds of a Box, as one number if all are equal; None for an infinite one."""
    found = [float(value) if np.isfinite(value) else None for value in values.flatten().tolist()]
    return found[0] if len(set(found)) == 1 else found


def _limit(values: list[float], shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Bounds of a Box in its type; integers have none that are infinite."""
    limits = np.array(values, np.float64)
    if dtype.kind in "iu":
        limits = limits.clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return limits.reshape(shape).astype(dtype)


def _flat(description: Mapping[str, Any], action: Any, name: str, who: str) -> list[np.ndarray]:
    kind = description["type"]
    if kind == "Dict":
        keys = [key for key, _ in description["spaces"]]
        if not isinstance(action, Mapping) or set(action) != set(keys):
            got = sorted(action) if isinstance(action, Mapping) else type(action).__name__
            raise _wrong(who, name, f"a mapping of {', '.join(keys)}", got)
        parts = [(part, action[key], f"{name}.{key}" if name else key) for key, part in description["spaces"]]
        return [flat for part, value, place in parts for flat in _flat(part, value, place, who)]
    if kind == "Tuple":
        spaces = description["spaces"]
        if not isinstance(action, tuple | list) or len(action) != len(spaces):
            raise _wrong(who, name, f"{len(spaces)} parts", action)
        pairs = enumerate(zip(spaces, action, strict=True))
        return [flat for i, (part, value) in pairs for flat in _flat(part, value, f"{name}[{i}]", who)]
    try:
        values = np.asarray(action, np.float64)
    except (TypeError, ValueError):
        raise _wrong(who, name, "numbers", action) from None
    if kind == "Discrete":
        shape: tuple[int, ...] = ()
        counts, start = np.array(description["n"]), np.array(description.get("start", 0))
    elif kind == "MultiDiscrete":
        counts = np.array(description["nvec"])
        shape, start = counts.shape, np.array(description.get("start", np.zeros_like(counts)))
    elif kind == "MultiBinary":
        shape = tuple(description["shape"])
        counts, start = np.full(shape, 2), np.zeros(shape, np.int64)
    else:
        shape = tuple(description["shape"])
    if values.shape != shape:
        raise _wrong(who, name, f"of the shape {shape}", f"{values.shape}")
    if kind == "Box":
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(np.float32)).all():
                raise _wrong(who, name, "finite in float32", action)
        return [values.flatten()]
    choices = values - start
    if not ((choices == np.floor(choices)) & (choices >= 0) & (choices < counts)).all():
        raise _wrong(who, name, f"whole numbers in {start.tolist()}..{(start + counts - 1).tolist()}", action)
    return [choices.flatten()]


def _unflat(description: Mapping[str, Any], flat: np.ndarray) -> tuple[Any, np.ndarray]:
    """The action at the beginning of a flat vector, and the rest of the vector."""
    kind = description["type"]
    if kind in ("Dict", "Tuple"):
        named = description["spaces"] if kind == "Dict" else enumerate(description["spaces"])
        found: dict[Any, Any] = {}
        for key, part in named:
            found[key], flat = _unflat(part, flat)
        return (found if kind == "Dict" else tuple(found.values())), flat
    size = len(components(description))
    own, rest = flat[:size], flat[size:]
    if len(own) < size:
        raise ValueError(f"unflatten_action: a flat action must have {size - len(own)} more numbers, got too few.")
    if kind == "Box":
        dtype = np.dtype(description.get("dtype", "float32"))
        return (np.rint(own) if dtype.kind in "iu" else own).astype(dtype).reshape(description["shape"]), rest
    whole = np.rint(own).astype(np.int64)
    if kind == "Discrete":
        return whole[0] + description.get("start", 0), rest
    if kind == "MultiBinary":
        return whole.astype(np.int8).reshape(description["shape"]), rest
    counts = np.array(description["nvec"])
    return whole.reshape(counts.shape) + np.array(description.get("start", np.zeros_like(counts))), rest


def _wrong(who: str, name: str, rule: str, value: object) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return ValueError(f"{who}: the action{f' {name}' if name else ''} must be {rule}, got {shown}.")
