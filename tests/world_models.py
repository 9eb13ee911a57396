"""Toy world models of every kind, with random weights, tokens and actions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recordings import tiny_adapter
from torch import Tensor

from world_model.actions import ActionSpec, GroupedActions, group_actions
from world_model.architecture import FlowConfig, TokenSpec, WorldModelConfig
from world_model.model import WorldModel
from world_model.transformer.block import TransformerConfig

TOKENS = TokenSpec(
    codebook_size=12,
    height=2,
    width=3,
    temporal_factor=2,
    fsq_levels=(4, 3),
    actions=ActionSpec(kind="discrete", size=5),
)
PATCHES = replace(TOKENS, codebook_size=None, fsq_levels=None, patch_dim=3)
CONFIG = WorldModelConfig(
    tokens=TOKENS,
    max_steps=4,
    transformer=TransformerConfig(width=24, depth=2, heads=2),
    copy_neighbourhood=3,
)
FLOW = replace(
    CONFIG, tokens=PATCHES, copy_neighbourhood=None, flow=FlowConfig(width=16, depth=1, repeats=2, sampling_steps=3)
)
CAUSAL = {
    "full": CONFIG,
    "no actions": replace(CONFIG, tokens=replace(TOKENS, actions=ActionSpec())),
    "continuous actions": replace(CONFIG, tokens=replace(TOKENS, actions=ActionSpec(kind="continuous", size=2))),
    "no copying": replace(CONFIG, previous_neighbourhood=1, copy_neighbourhood=0),
    "free embeddings": replace(CONFIG, tokens=replace(TOKENS, fsq_levels=None)),
    "factored": replace(CONFIG, vocabulary="factored"),
    "patches": FLOW,
    "corrupted": replace(CONFIG, corruption=0.5, action_dropout=0.2),
}
MASKED = {
    "masked": replace(CONFIG, prediction="masked"),
    "masked factored": replace(CONFIG, prediction="masked", vocabulary="factored"),
    "masked patches": replace(FLOW, prediction="masked"),
}
VARIANTS = CAUSAL | MASKED


def random_model(config: WorldModelConfig = CONFIG, seed: int = 0) -> WorldModel:
    """A model in eval mode without zero weights, as after training, so that every weight matters."""
    torch.manual_seed(seed)
    model = WorldModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_tokens(config: WorldModelConfig, batch: int, steps: int, seed: int = 0) -> Tensor:
    assert config.tokens is not None
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps, config.tokens.height, config.tokens.width)
    if config.tokens.codebook_size is not None:
        return torch.randint(config.tokens.codebook_size, shape, generator=generator)
    return torch.randn(*shape, config.tokens.patch_dim, generator=generator)  # type: ignore[call-overload,no-any-return]


def random_actions(config: WorldModelConfig, batch: int, steps: int, seed: int = 0) -> GroupedActions | None:
    assert config.tokens is not None
    generator = torch.Generator().manual_seed(seed)
    spec, frames = config.tokens.actions, 1 + (steps - 1) * config.tokens.temporal_factor
    if spec.kind == "none":
        return None
    if spec.kind == "discrete":
        values = torch.randint(spec.size, (batch, frames), generator=generator)
    else:
        values = torch.randn(batch, frames, spec.size, generator=generator)
    return group_actions(values, config.tokens.temporal_factor)


def of_step(actions: GroupedActions | None, step: int) -> GroupedActions | None:
    """The actions of a single step."""
    return None if actions is None else actions[step : step + 1]


def rows(actions: GroupedActions | None, which: Any) -> GroupedActions | None:
    """The actions of some rollouts."""
    return None if actions is None else GroupedActions(values=actions.values[which], known=actions.known[which])


def save_tiny_world(folder: Path) -> Path:
    """Save an untrained world for the videos and actions of `recordings.write_episode`; -> the folder."""
    adapter = tiny_adapter()
    actions = ActionSpec(kind="discrete", size=3)
    tokens = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=actions)
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    model = WorldModel(WorldModelConfig(tokens=tokens, max_steps=6, transformer=sizes), adapter.token_hash)
    model.save_pretrained(folder, adapter)
    return folder
