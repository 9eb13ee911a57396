"""Checks the plain fields of a dataclass instance against their type hints, however it was made."""

import dataclasses
import math
import types
import typing
from collections.abc import Hashable
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal


def check_fields(instance: Any) -> None:
    """Raise a ValueError that names the first plain field whose value is not of its type, or not finite.

    Plain types are bool, int, float (which takes whole numbers), str, Literal, dataclasses, tuples of these, and unions
    with None; fields of other types are left alone. Call it first in `__post_init__`.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class RunConfig:
        ...     rate: float = 0.1
        ...     def __post_init__(self) -> None:
        ...         check_fields(self)
        >>> RunConfig(rate=float("inf"))
        Traceback (most recent call last):
        ValueError: RunConfig: rate must be a finite number, got inf.
    """
    for name, hint in _hints(typing.cast(Hashable, type(instance))):
        value = getattr(instance, name)
        if not _fits(hint, value):
            raise ValueError(f"{type(instance).__name__}: {name} must be {_rule(hint)}, got {value!r}.")


@cache
def _hints(cls: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(cls)]


def _fits(hint: Any, value: Any) -> bool:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        hints = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        return len(hints) == len(value) and all(map(_fits, hints, value))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _finite(value)
    if hint in (str, type(None)) or dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return True


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _one_of(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _rule(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of([_rule(option) for option in options])
    if origin is Literal:
        return _one_of([repr(option) for option in options])
    if origin is tuple:
        if options[-1] is Ellipsis:
            return f"several, each {_rule(options[0])}"
        return f"{len(options)} values ({', '.join(_rule(option) for option in options)})"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", type(None): "None"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")
