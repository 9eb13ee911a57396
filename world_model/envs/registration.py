"""Registers the environment `vidtok/Imagined-v0` with gymnasium, once somebody imports gymnasium."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

ENV_ID = "vidtok/Imagined-v0"


def register_env() -> None:
    """Register now where gymnasium has been imported, else as soon as it is. It is not imported here: it is optional,
    and few who roll out worlds need it."""
    if "gymnasium" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterGymnasium) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterGymnasium())


def _register() -> None:
    import gymnasium

    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="world_model.envs.env:ImaginedEnv",
            vector_entry_point="world_model.envs.vector_env:ImaginedVectorEnv",
        )


class _AfterGymnasium(MetaPathFinder):
    """Finds gymnasium as Python would, and registers when it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
