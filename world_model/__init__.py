"""World models over video tokens: train them on recorded episodes, roll them out under actions."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from world_model import envs
from world_model.action_spaces import describe_space, flatten_action, unflatten_action
from world_model.actions import ActionSpec, GroupedActions, group_actions
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.data import TokenDataConfig, TokenDataModule
from world_model.decoding import Decoding
from world_model.envs import MODULES
from world_model.envs.registration import register_env
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.planning.planner import Planner, PlannerConfig
from world_model.rollout.imagination import Imagination, ImaginedStep
from world_model.rollout.rollout import RolloutResult, rollout, rollout_many
from world_model.rollout.streaming import stream_rollout
from world_model.rollout.worlds import load_world
from world_model.training.module import WorldModelModule, WorldModelRunConfig
from world_model.transformer.block import TransformerConfig

__all__ = [
    "ActionSpec",
    "Decoding",
    "GroupedActions",
    "Imagination",
    "ImaginedStep",
    "Planner",
    "PlannerConfig",
    "RolloutResult",
    "Sampler",
    "StepGenerator",
    "TokenDataConfig",
    "TokenDataModule",
    "TokenSpec",
    "TransformerConfig",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelModule",
    "WorldModelRunConfig",
    "describe_space",
    "flatten_action",
    "group_actions",
    "load_world",
    "rollout",
    "rollout_many",
    "stream_rollout",
    "unflatten_action",
]

if TYPE_CHECKING:
    from world_model.envs import ImaginedEnv as ImaginedEnv
    from world_model.envs import ImaginedVectorEnv as ImaginedVectorEnv

if find_spec("gymnasium") is not None:  # it is optional
    __all__ += list(MODULES)
    register_env()


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(envs, name)
