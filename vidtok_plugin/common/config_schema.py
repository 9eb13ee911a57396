"""Checks a tree of config values against a dataclass schema and builds the instances.

Fields may be: bool, int, float, str, Path, an Enum (by name), Any, Literal, another dataclass, `tuple[X, Y]`,
`tuple[X, ...]`, `list[X]`, `dict[str, X]`, and unions of those with None or of scalars. A float field accepts an int;
no other conversion is silent.
"""

import dataclasses
import difflib
import enum
import math
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.remote import check_url, is_url, masked

Source = tuple[str, Any]  # a file or an override, and the tree of values that it sets


class ConfigError(ValueError):
    """A mistake in a config file or an override; the message is one sentence with the key and the remedy."""


def key_name(path: tuple[str, ...], sources: Sequence[Source]) -> str:
    """The dotted key, with the last file or override that set it."""
    for where, tree in reversed(sources):
        for part in path:
            if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
                tree = tree[int(part)]
            elif isinstance(tree, dict) and part in tree:
                tree = tree[part]
            else:
                break
        else:
            return f"{'.'.join(path)} ({where})" if path else f"config ({where})"
    return ".".join(path) or "config"


def _known_keys(schema: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field_name, hint in typing.get_type_hints(schema).items():
        yield (*prefix, field_name)
        for nested in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(nested) and nested is not schema:
                yield from _known_keys(nested, (*prefix, field_name))


class SchemaCheck:
    """Turns a tree of values into dataclass instances; errors name the key and the file or override that set it.

    A dataclass may have a class variable `RENAMED`, a mapping of former to current keys, which errors refer to.
    """

    def __init__(self, root: Any, sources: Sequence[Source]) -> None:
        self.root, self.sources = root, sources

    def error(self, path: tuple[str, ...], rule: str, value: Any) -> ConfigError:
        got = "nothing (null)" if value is None else f"{value!r} ({type(value).__name__})"
        return ConfigError(f"{key_name(path, self.sources)} must be {rule}, got {got}.")

    def missing(self, path: tuple[str, ...]) -> ConfigError:
        key = ".".join(path)
        return ConfigError(f"{key} is required; set it in a config file or as {key}=VALUE.")

    def unknown(self, schema: Any, path: tuple[str, ...]) -> ConfigError:
        renamed = getattr(schema, "RENAMED", {}).get(path[-1])
        if renamed is not None:
            key = ".".join((*path[:-1], renamed))
            return ConfigError(f"unknown key {key_name(path, self.sources)}; it is now called {key}.")
        here = [field.name for field in dataclasses.fields(schema) if field.init]
        everywhere = [".".join(known) for known in _known_keys(self.root)]
        namesakes = [known for known in everywhere if known.rpartition(".")[2] == path[-1]]
        siblings = difflib.get_close_matches(path[-1], here, 1)
        dotted = [".".join((*path[:-1], name)) for name in siblings] + namesakes
        best = dotted[0] if dotted else nearest(".".join(path), everywhere)
        return ConfigError(f"unknown key {key_name(path, self.sources)}; the nearest known key is {best}.")

    def dataclass(self, schema: Any, value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, dict):
            raise self.error(path, f"a mapping of the keys of {schema.__name__}", value)
        hints = typing.get_type_hints(schema)
        fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
        for key in value:
            if key not in fields:
                raise self.unknown(schema, (*path, str(key)))
        arguments = {key: self.value(hints[key], value[key], (*path, key)) for key in value}
        for name, field in fields.items():
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and name not in arguments:
                raise self.missing((*path, name))
        try:
            return schema(**arguments)
        except ValueError as error:
            raise ConfigError(f"{key_name(path, self.sources)}: {error}" if path else str(error)) from error

    def value(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        origin, options = typing.get_origin(hint), typing.get_args(hint)
        if value == "???":  # OmegaConf's marker for a missing value
            raise self.missing(path)
        if isinstance(value, str) and is_url(value):  # configs are printed and saved
            try:
                check_url(value)
            except ValueError as error:
                raise ConfigError(masked(f"{key_name(path, self.sources)}: {error}")) from None
        if hint is Any:
            return value
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value, path)
        if origin in (typing.Union, types.UnionType):
            return self.union(options, value, path)
        if origin is Literal:
            if not any(type(value) is type(option) and value == option for option in options):
                raise self.error(path, f"one of {', '.join(map(str, options))}", value)
            return value
        if (origin or hint) in (list, tuple):
            return self.sequence(origin or hint, options, value, path)
        if (origin or hint) is dict:
            if not isinstance(value, dict):
                raise self.error(path, "a mapping of keys to values", value)
            item_hint = options[1] if options else Any
            return {key: self.value(item_hint, item, (*path, str(key))) for key, item in value.items()}
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            if not isinstance(value, str) or value not in hint.__members__:
                raise self.error(path, f"one of {', '.join(hint.__members__)}", value)
            return hint[value]
        return self.scalar(hint, value, path)

    def scalar(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
            return float(value)
        if hint is Path and isinstance(value, str):
            try:
                return user_path(value)
            except ValueError as error:
                raise ConfigError(f"{key_name(path, self.sources)}: {error}") from None
        if hint not in (bool, int, float, str, Path, type(None)):
            key = ".".join(path)
            raise TypeError(f"{self.root.__name__}: {key} has the type {hint}, which configs cannot hold")
        if type(value) is not hint:
            quote = "; put it in quotes" if hint is str and value is not None else ""
            raise self.error(path, f"{hint.__name__}{quote}", value)
        if hint is float and not math.isfinite(value):
            raise self.error(path, "a finite number", value)
        return value

    def sequence(self, kind: type, options: tuple[Any, ...], value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, list):
            raise self.error(path, f"a list, such as [{value}]" if isinstance(value, str) else "a list", value)
        if kind is tuple and options and options[-1] is not Ellipsis:
            if len(value) != len(options):
                raise self.error(path, f"a list of {len(options)}", value)
            hints: Sequence[Any] = options
        else:
            hints = [options[0] if options else Any] * len(value)
        items = enumerate(zip(hints, value, strict=True))
        return kind(self.value(hint, item, (*path, str(i))) for i, (hint, item) in items)

    def union(self, options: tuple[Any, ...], value: Any, path: tuple[str, ...]) -> Any:
        if type(value) in options:  # an exact match first: 3 stays an int in `float | int`
            return value
        candidates = [option for option in options if option is not type(None)]
        if len(candidates) == 1:
            return self.value(candidates[0], value, path)
        for option in candidates:
            try:
                return self.value(option, value, path)
            except ConfigError:
                continue
        names = [getattr(option, "__name__", str(option)) for option in candidates]
        raise self.error(path, " or ".join(names), value)
