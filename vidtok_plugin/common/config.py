"""Config files: YAML merged by OmegaConf, then checked once against typed dataclasses."""

import dataclasses
import enum
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtok_plugin.common.config_schema import ConfigError, SchemaCheck, Source, key_name
from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.paths import user_path

T = TypeVar("T")

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000


def load_config(schema: type[T], paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> T:
    """Merges YAML files from left to right, then `key=value` overrides, into an instance of `schema`.

    `schema` is a dataclass; `config_schema` lists the types that its fields may have. Interpolations such as
    `${model.width}` are resolved after merging and may refer to defaults. Mappings merge key by key; lists are
    replaced (`sizes.0=3` overrides one element).

    Raises:
        ConfigError: a ValueError, for any mistake in a file or an override.
        FileNotFoundError: a file does not exist.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class RunConfig:
        ...     width: int = 8
        ...     depth: int = 2
        >>> load_config(RunConfig, [], ["width=32", "depth=${width}"])
        RunConfig(width=32, depth=32)
    """
    sources: list[Source] = []
    try:
        merged = OmegaConf.create(_defaults(schema))
        for path in [paths] if isinstance(paths, str | Path) else paths:
            loaded = read_yaml(user_path(path))
            sources.append((str(path), OmegaConf.to_container(loaded, resolve=False)))
            merged = typing.cast(DictConfig, OmegaConf.merge(merged, loaded))
        for override in overrides:
            key, value = _parse_override(override)
            OmegaConf.update(merged, key, value)
            for part in reversed(_split(key)):
                value = {part: value}
            sources.append((f"override '{override}'", value))
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        where = tuple(_split(error.full_key or ""))
        raise ConfigError(f"{key_name(where, sources)}: {str(error).splitlines()[0]}.") from error
    return SchemaCheck(schema, sources).dataclass(schema, plain, ())


def to_dict(cfg: Any) -> dict[str, Any]:
    """A config as plain dicts, lists, numbers and strings, as in its YAML.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class RunConfig:
        ...     size: tuple[int, int] = (64, 64)
        >>> to_dict(RunConfig())
        {'size': [64, 64]}
    """
    return {field.name: _plain(getattr(cfg, field.name)) for field in dataclasses.fields(cfg) if field.init}


def to_yaml(cfg: Any) -> str:
    """A config as YAML, which `load_config` reads back as an equal instance."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(to_dict(cfg))))


def check_keywords(field: str, given: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Checks that a `dict[str, Any]` field holds only keywords of `function`, for example of Lightning's Trainer.

    Example:
        >>> check_keywords("fit", {"step": 3}, lambda steps: None)
        Traceback (most recent call last):
        vidtok_plugin.common.config_schema.ConfigError: unknown key fit.step; the nearest known key is fit.steps.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key {field}.{key}; the nearest known key is {field}.{nearest(key, known)}.")


def read_yaml(path: Path, *, max_bytes: int = MAX_BYTES, aliases: bool = True) -> DictConfig:
    """The unresolved values of a YAML file that holds a mapping, of bounded size and depth.

    Raises:
        ConfigError: it holds anything else, or aliases that are not allowed.
        FileNotFoundError: it does not exist.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"config file {path} {what}; give a YAML file.")
    size = path.stat().st_size
    if size > max_bytes:
        raise ConfigError(f"config file {path} must have at most {max_bytes} bytes, got {size}; give a config file.")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(path, text, aliases)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigError(f"config file {path} has no keys; add some or leave the file out.")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"config file {path} must hold keys and values, such as `seed: 0`.")
        if not _expanded(root, {}) <= MAX_VALUES:
            raise ConfigError(
                f"config file {path} must have at most {MAX_VALUES} values once its aliases (*name) are followed, got "
                "more; write fewer."
            )
        return typing.cast(DictConfig, OmegaConf.create(text))
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not a text file; give a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {_yaml_problem(error)}.") from error


def _check_events(path: Path, text: str, aliases: bool) -> None:
    """Bound the depth before a parser follows it recursively."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"config file {path} must be nested at most {MAX_DEPTH} deep, got more in line {line}; flatten it."
            )
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise ConfigError(f"config file {path} must have no aliases, got *{event.anchor} in line {line}.")


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values in a node once its aliases are followed; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(_split(key)):
        is_file = override.endswith((".yaml", ".yml"))
        hint = f"for a config file use --config {override}" if is_file else "for example seed=1"
        raise ConfigError(f"override '{override}' must read key=value; {hint}.")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = _yaml_problem(error) if isinstance(error, yaml.YAMLError) else str(error).splitlines()[0]
        raise ConfigError(f"override '{override}' has a value that is not valid YAML: {problem}.") from error
    return key, typing.cast(dict[str, Any], value)["value"]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + str(problem or error).splitlines()[0]


def _split(key: str) -> list[str]:
    return key.replace("[", ".").replace("]", "").split(".")


def _defaults(schema: Any) -> dict[str, Any]:
    """The defaults as a tree, so that interpolations can refer to them, without required keys."""
    tree: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.default is not dataclasses.MISSING:
            tree[field.name] = _escape(_plain(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            tree[field.name] = _escape(_plain(field.default_factory()))
        elif dataclasses.is_dataclass(hints[field.name]):
            tree[field.name] = _defaults(hints[field.name])
    return tree


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def _escape(value: Any) -> Any:
    """Escapes a literal `${`, which would be read as an interpolation."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
