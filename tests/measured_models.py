"""A tiny world model for the tests of measures."""

import torch

from world_model import ActionSpec, TokenSpec, TransformerConfig, WorldModel, WorldModelConfig


def random_model(tokens: TokenSpec | None = None) -> WorldModel:
    """A model with random weights, for the given tokens or those of `recordings.tiny_adapter` at 16 x 16 pixels and 3
    actions."""
    torch.manual_seed(0)
    actions = ActionSpec(kind="discrete", size=3)
    default = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=actions)
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    model = WorldModel(WorldModelConfig(tokens=tokens or default, max_steps=6, transformer=sizes))
    for parameter in model.parameters():  # no weight is zero, as after training
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
