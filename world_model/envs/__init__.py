"""Environments: gymnasium's own classes, whose steps a world model imagines. They need gymnasium, which is optional."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from world_model.envs.env import ImaginedEnv as ImaginedEnv
    from world_model.envs.vector_env import ImaginedVectorEnv as ImaginedVectorEnv

MODULES = {"ImaginedEnv": "world_model.envs.env", "ImaginedVectorEnv": "world_model.envs.vector_env"}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(MODULES[name]), name)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "gymnasium":
            raise
        raise ImportError(
            f"{name}: gymnasium must be installed for imagined environments, and it is not; run: pip install "
            "'vidtok-plugin[envs]'.",
            name=error.name,
        ) from None
