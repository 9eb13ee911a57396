"""Measures of world models, in three named regimes, as `world-model validate` reports them."""

from world_model.heads.base import TokenScores
from world_model.measures.baselines import Baselines
from world_model.measures.config import MeasuresConfig
from world_model.measures.controllability import ActionEffect, bootstrap_interval, random_actions
from world_model.measures.cross_entropy import CrossEntropies, cross_entropies
from world_model.measures.prompts import Prompts, held_out_prompts
from world_model.measures.report import REGIMES, Measured, Report
from world_model.measures.rollout_scores import RolloutScores, score_rollouts
from world_model.measures.teacher_forcing import TeacherForced, teacher_forced

__all__ = [
    "REGIMES",
    "ActionEffect",
    "Baselines",
    "CrossEntropies",
    "Measured",
    "MeasuresConfig",
    "Prompts",
    "Report",
    "RolloutScores",
    "TeacherForced",
    "TokenScores",
    "bootstrap_interval",
    "cross_entropies",
    "held_out_prompts",
    "random_actions",
    "score_rollouts",
    "teacher_forced",
]
