"""World models and Llamas of the same shape, with random weights, on which speed does not depend."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vidtok_plugin.common.devices import default_device
from world_model import WorldModel
from world_model.actions import ActionSpec, GroupedActions, group_actions
from world_model.architecture import Prediction, TokenSpec, WorldModelConfig
from world_model.transformer.block import TransformerConfig

ACTIONS = 18
TOKENS = TokenSpec(  # of vidtok_tiny at 64x64
    codebook_size=1000,
    fsq_levels=(8, 5, 5, 5),
    height=8,
    width=8,
    temporal_factor=4,
    actions=ActionSpec(kind="discrete", size=ACTIONS),
)
STEP = TOKENS.tokens_per_step
SIZES = {
    "demo": TransformerConfig(width=192, depth=4, heads=4),  # configs/world_model/demo_from_scratch.yaml
    "large": TransformerConfig(width=512, depth=8, heads=8),
}
PRECISIONS = ("32", "bf16", "bf16-weights")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that both share, and the latent steps that ours sees."""

    size: str
    precision: str = "32"
    max_steps: int = 8

    def world_model(self, prediction: Prediction = "causal") -> WorldModel:
        config = WorldModelConfig(
            tokens=TOKENS, max_steps=self.max_steps, transformer=SIZES[self.size], prediction=prediction
        )
        model = WorldModel(config)
        self._prepare(model)
        return model

    def llama(self, length: int) -> LlamaForCausalLM:
        """For sequences of at most `length` tokens."""
        sizes = SIZES[self.size]
        config = LlamaConfig(
            vocab_size=TOKENS.codebook_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp_width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            max_position_embeddings=length,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
        self._prepare(model)
        return model

    def _prepare(self, model: nn.Module) -> None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        model.to(default_device()).eval()
        if self.precision == "bf16-weights":
            model.bfloat16()

    def casting(self) -> AbstractContextManager[object]:
        """The autocast context that both run in."""
        if self.precision == "bf16":
            return torch.autocast(default_device().type, torch.bfloat16)
        return nullcontext()


def random_codes(batch: int, steps: int) -> Tensor:
    """(b, T, H, W)."""
    shape = (batch, steps, TOKENS.height, TOKENS.width)
    return torch.randint(TOKENS.codebook_size, shape, generator=torch.Generator().manual_seed(0)).to(default_device())


def random_actions(batch: int, steps: int) -> GroupedActions:
    """One action for each frame of so many latent steps."""
    frames = 1 + (steps - 1) * TOKENS.temporal_factor
    values = torch.randint(ACTIONS, (batch, frames), generator=torch.Generator().manual_seed(1))
    return group_actions(values, TOKENS.temporal_factor).to(default_device())
