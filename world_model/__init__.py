"""World models over video tokens: train them on recorded episodes, roll them out under actions."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vidtok_plugin.common.lazy_package import make_lazy
from world_model.envs.registration import register_env

if TYPE_CHECKING:
    from world_model.action_spaces import describe_space as describe_space
    from world_model.action_spaces import flatten_action as flatten_action
    from world_model.action_spaces import unflatten_action as unflatten_action
    from world_model.actions import ActionSpec as ActionSpec
    from world_model.actions import GroupedActions as GroupedActions
    from world_model.actions import group_actions as group_actions
    from world_model.architecture import TokenSpec as TokenSpec
    from world_model.architecture import WorldModelConfig as WorldModelConfig
    from world_model.data import TokenDataConfig as TokenDataConfig
    from world_model.data import TokenDataModule as TokenDataModule
    from world_model.decoding import Decoding as Decoding
    from world_model.envs import ImaginedEnv as ImaginedEnv
    from world_model.envs import ImaginedVectorEnv as ImaginedVectorEnv
    from world_model.generation.export import ExportedWorld as ExportedWorld
    from world_model.generation.export import export_world as export_world
    from world_model.generation.generator import StepGenerator as StepGenerator
    from world_model.heads.sampler import Sampler as Sampler
    from world_model.model import WorldModel as WorldModel
    from world_model.planning.planner import Planner as Planner
    from world_model.planning.planner import PlannerConfig as PlannerConfig
    from world_model.rollout.imagination import Imagination as Imagination
    from world_model.rollout.imagination import ImaginedStep as ImaginedStep
    from world_model.rollout.rollout import RolloutResult as RolloutResult
    from world_model.rollout.rollout import rollout as rollout
    from world_model.rollout.rollout import rollout_many as rollout_many
    from world_model.rollout.streaming import stream_rollout as stream_rollout
    from world_model.rollout.worlds import load_world as load_world
    from world_model.training.module import WorldModelModule as WorldModelModule
    from world_model.training.module import WorldModelRunConfig as WorldModelRunConfig
    from world_model.transformer.block import TransformerConfig as TransformerConfig

__all__ = make_lazy(
    __name__,
    {
        "ActionSpec": "world_model.actions",
        "Decoding": "world_model.decoding",
        "ExportedWorld": "world_model.generation.export",
        "GroupedActions": "world_model.actions",
        "Imagination": "world_model.rollout.imagination",
        "ImaginedEnv": "world_model.envs",
        "ImaginedStep": "world_model.rollout.imagination",
        "ImaginedVectorEnv": "world_model.envs",
        "Planner": "world_model.planning.planner",
        "PlannerConfig": "world_model.planning.planner",
        "RolloutResult": "world_model.rollout.rollout",
        "Sampler": "world_model.heads.sampler",
        "StepGenerator": "world_model.generation.generator",
        "TokenDataConfig": "world_model.data",
        "TokenDataModule": "world_model.data",
        "TokenSpec": "world_model.architecture",
        "TransformerConfig": "world_model.transformer.block",
        "WorldModel": "world_model.model",
        "WorldModelConfig": "world_model.architecture",
        "WorldModelModule": "world_model.training.module",
        "WorldModelRunConfig": "world_model.training.module",
        "describe_space": "world_model.action_spaces",
        "export_world": "world_model.generation.export",
        "flatten_action": "world_model.action_spaces",
        "group_actions": "world_model.actions",
        "load_world": "world_model.rollout.worlds",
        "rollout": "world_model.rollout.rollout",
        "rollout_many": "world_model.rollout.rollout",
        "stream_rollout": "world_model.rollout.streaming",
        "unflatten_action": "world_model.action_spaces",
    },
    needs={
        "ImaginedEnv": "gymnasium",
        "ImaginedVectorEnv": "gymnasium",
        "TokenDataConfig": "lightning",
        "TokenDataModule": "lightning",
        "WorldModelModule": "lightning",
        "WorldModelRunConfig": "lightning",
    },
)

if find_spec("gymnasium") is not None:  # it is optional
    register_env()
