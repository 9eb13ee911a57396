"""Configs in folders of models and adapters, which may come from a stranger: plain values, without interpolation.

Interpolations such as `${oc.env:NAME}` would put environment variables into error messages and stores, so they are for
the user's own run configs (`config.py`) alone.
"""

import re
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtok_plugin.common.config import read_yaml
from vidtok_plugin.common.config_schema import ConfigError, SchemaCheck, key_name

T = TypeVar("T")

MAX_BYTES = 1 << 16  # ours have about one thousand
_INTERPOLATION = re.compile(r"(?<!\\)\$\{")


def load_saved_config(schema: type[T], path: Path) -> T:
    """The instance of `schema` that `to_yaml` wrote into a file.

    Raises:
        ConfigError: a ValueError, for any mistake in the file, an interpolation, an alias, or a file of another size.
        FileNotFoundError: it does not exist.
    """
    return checked_config(schema, read_saved_config(path), path)


def read_saved_config(path: Path) -> dict[str, Any]:
    """The values in a file that `to_yaml` wrote, before they are checked against a schema; errors as above."""
    try:
        values = OmegaConf.to_container(read_yaml(path, max_bytes=MAX_BYTES, aliases=False), resolve=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path} is not valid: {str(error).splitlines()[0]}.") from error
    return cast(dict[str, Any], _literal(values, (), path))


def checked_config(schema: type[T], values: dict[str, Any], source: str | Path) -> T:
    """Plain values that were read from `source`, as an instance of `schema`."""
    return cast(T, SchemaCheck(schema, [(str(source), values)]).dataclass(schema, values, ()))


def _literal(value: Any, keys: tuple[str, ...], path: Path) -> Any:
    """The values with literal `${`, which `to_yaml` escapes; an interpolation is an error."""
    if isinstance(value, dict):
        return {key: _literal(item, (*keys, str(key)), path) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item, (*keys, str(i)), path) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if _INTERPOLATION.search(value):
        raise ConfigError(
            f"{key_name(keys, [])} ({path}) must be a plain value, got the interpolation {value[:80]!r}; "
            "interpolations are for your own run configs, not for the folder of a saved model."
        )
    return value.replace("\\${", "${")
