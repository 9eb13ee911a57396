"""The head of states: the normalized state of each frame of a latent step.

It predicts how the state differs from that of the newest frame before the step, from a pooled step, the states of the
step before, and the step's conditioning: its actions tell most. A new head copies that newest state.

Shapes: b clips, T latent steps, n positions of a step, f frames of a step, s components of a state, d width of the
model, e of the tokens' narrow embeddings, w width of the head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.architecture import StateConfig
from world_model.heads.pooling import StepPooling
from world_model.inputs.state import marked, newest_known


class StateHead(StepPooling):
    """Predicts the normalized states of a step's frames."""

    def __init__(self, config: StateConfig, width: int, narrow_width: int, temporal_factor: int) -> None:
        super().__init__(width, narrow_width, config.width)
        assert config.size is not None
        self.frames, self.size = temporal_factor, config.size
        self.past = nn.Linear(config.width + width + self.frames * (self.size + 1), config.width)
        self.change = nn.Linear(config.width, self.frames * self.size)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, hidden: Tensor, own: Tensor, before: Tensor, conditioning: Tensor, past: Tensor) -> Tensor:
        """Normalized states (..., f, s) float32 of steps, from (..., n, d) hidden states, the embeddings (..., n, e) of
        the tokens of both steps, the conditioning (..., n, d) of the step, and the normalized states (..., f, s) of the
        step before, NaN where unknown."""
        x = self.pooled(hidden, own, before)
        x = F.silu(self.past(torch.cat([x, conditioning.mean(-2), marked(past).to(x.dtype)], dim=-1)))
        change = self.change(x).float().unflatten(-1, (self.frames, self.size))
        return newest_known(past)[..., None, :] + change


def state_errors(predicted: Tensor, real: Tensor) -> Tensor:
    """Squared errors (..., T) of normalized states (..., T, f, s): mean over frames and components, 0 where unknown."""
    known = ~real.isnan()
    return torch.where(known, predicted - torch.where(known, real, 0.0), 0.0).square().mean((-1, -2))
