"""Packages that import each of their public names when it is first used, so that a command starts in a fraction of a
second."""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def make_lazy(package: str, exports: Mapping[str, str], needs: Mapping[str, str] | None = None) -> list[str]:
    """Let a package have these public names, each from the module `exports` names; -> the names, for its `__all__`.

    needs: optional packages that names need; `__all__` leaves out the names whose package is not installed.

    Called in the package's `__init__.py`, which tells type checkers of the names by importing them under
    `TYPE_CHECKING`. A name wins over a subpackage of the same name, which Python would put in its place.

    Example:
        >>> make_lazy(__name__, {"VidTok": "vidtok_plugin.tokenizer.model"})  # doctest: +SKIP
    """
    module = sys.modules[package]
    members: dict[str, Any] = {name: _imported(name, source) for name, source in exports.items()}
    members["__dir__"] = lambda self: sorted({*ModuleType.__dir__(self), *exports})
    module.__class__ = type("LazyPackage", (ModuleType,), members)
    needs = needs or {}
    missing = {needed for needed in set(needs.values()) if find_spec(needed) is None}
    return sorted(name for name in exports if needs.get(name) not in missing)


def _imported(name: str, source: str) -> property:
    """The attribute `name` of a package: that of the module `source`, until somebody sets another."""

    def get(package: ModuleType) -> Any:
        return package.__dict__[name] if name in package.__dict__ else getattr(import_module(source), name)

    def set_(package: ModuleType, value: Any) -> None:
        if not isinstance(value, ModuleType):  # Python sets a subpackage when it is imported
            package.__dict__[name] = value

    return property(get, set_)
