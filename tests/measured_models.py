"""A world model for the tests of measures: tiny, with no weight at zero, as after training."""

import torch

from world_model import ActionSpec, TokenSpec, TransformerConfig, WorldModel, WorldModelConfig


def random_model(tokens: TokenSpec | None = None) -> WorldModel:
    """Of the given tokens, else of those of `recordings.tiny_adapter` at 16 x 16 pixels with 3 actions."""
    torch.manual_seed(0)
    actions = ActionSpec(kind="discrete", size=3)
    own = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=actions)
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    model = WorldModel(WorldModelConfig(tokens=tokens or own, max_steps=6, transformer=sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
