"""States of frames, such as a robot's joints: checked, and embedded as conditioning of the step after them.

A causal tokenizer with temporal factor f encodes frame 0 as latent step 0 and f frames as each later step. A step's
states are those of its f frames; step 0 has one, the last of its f. What is unknown is NaN, of whole frames.

Shapes: b clips, T latent steps, f frames a step, s components of a state, d width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import check_tensor

LARGEST = 10.0  # deviations that the model distinguishes: one that no episode had must not drown everything else


class StateEmbedding(nn.Module):
    """Embeds the normalized states of the step before as one vector.

    The projection starts at zero, so an untrained model ignores states. Unknown ones count as 0 and are marked.
    """

    def __init__(self, size: int, temporal_factor: int, hidden_width: int, width: int) -> None:
        super().__init__()
        self.join = nn.Linear(temporal_factor * (size + 1), hidden_width)
        self.project = nn.Linear(hidden_width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, before: Tensor) -> Tensor:
        """Normalized states (..., f, s) of the step before each -> (..., d)."""
        return self.project(nn.functional.silu(self.join(marked(before).to(self.join.weight.dtype))))


def marked(state: Tensor) -> Tensor:
    """Normalized states (..., f, s) as one bounded vector (..., f * (s + 1)), with a mark for each frame that is
    known.

    Example:
        >>> marked(torch.tensor([[[0.5, -20.0], [float("nan"), float("nan")]]])).tolist()
        [[0.5, -10.0, 1.0, 0.0, 0.0, 0.0]]
    """
    known = ~state.isnan().any(-1, keepdim=True)
    bounded = torch.where(known, state, 0.0).clamp(-LARGEST, LARGEST)
    return rearrange(torch.cat([bounded, known.to(state.dtype)], dim=-1), "... f s -> ... (f s)")


def newest_known(state: Tensor) -> Tensor:
    """The state (..., s) of the last of the frames (..., f, s), 0 where it is unknown."""
    return state[..., -1, :].nan_to_num(0.0)


def drop_state(state: Tensor, rate: float) -> Tensor:
    """States (b, T, f, s) with those of a random fraction `rate` of windows unknown."""
    dropped = torch.rand(len(state), 1, 1, 1, device=state.device) < rate
    return state.masked_fill(dropped, torch.nan)


def checked_state(
    state: Tensor, size: int, temporal_factor: int, batch: int, steps: int, *, validate: bool | None = None
) -> Tensor:
    """States (b, T, f, s) that fit the model and the window, as float32.

    Values are checked with `validate=True`, which waits for the device; by default on the CPU only.

    Raises:
        ValueError: no tensor, another shape, or values that are infinite in float32.
    """
    check_tensor(state, who="WorldModel", name="state")
    expected = (batch, steps, temporal_factor, size)
    if state.shape != expected or state.dtype not in FLOATS:
        raise ValueError(
            f"WorldModel: state must be floats of shape {expected} (clips, latent steps, frames, components), got "
            f"{state.dtype} of {tuple(state.shape)}; group one state for each frame with group_state."
        )
    state = state.float()
    if (state.device.type == "cpu" if validate is None else validate) and bool(state.isinf().any()):
        place = tuple(state.isinf().nonzero()[0].tolist())
        raise ValueError(
            f"WorldModel: state must be finite in float32, or NaN where unknown, got {state[place].item()} at position "
            f"{place}."
        )
    return state
