"""The spaces of imagined environments, and actions from them as a world model takes them.

Shapes: b environments, h w pixels, f frames per latent step, k actions of an environment's step, a components of a
continuous action.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ImaginedSpaces:
    """Spaces of one environment."""

    observation: spaces.Box
    action: Space[Any]
    frames: int  # f
    action_repeat: int  # frames for which an action is held; f / k
    continuous: bool
    acts: bool  # whether the world has actions at all

    @classmethod
    def of(
        cls,
        model: WorldModel,
        adapter: TokenizerAdapter,
        action_repeat: int | None,
        action_range: tuple[float, float],
        who: str,
    ) -> "ImaginedSpaces":
        """The spaces of a world. `action_repeat` frames, a divisor of f and by default f, are an action's."""
        tokens = model.tokens
        f, spec, s = tokens.temporal_factor, tokens.actions, adapter.spatial_factor
        held = f if action_repeat is None else action_repeat
        if held < 1 or f % held:
            raise ValueError(
                f"{who}: action_repeat must be a divisor of {f}, the frames of a latent step, or None for all of them, "
                f"got {action_repeat}."
            )
        low, high = action_range
        if not low < high:
            raise ValueError(f"{who}: action_range must be two ascending numbers, got {action_range}.")
        k = f // held
        action: Space[Any]
        if spec.kind == "none":
            action = spaces.Discrete(1)
        elif spec.kind == "discrete":
            action = spaces.Discrete(spec.size) if k == 1 else spaces.MultiDiscrete([spec.size] * k)
        else:
            action = spaces.Box(low, high, (spec.size,) if k == 1 else (k, spec.size), np.float32)
        _, rows, columns = adapter.config.patch_size
        size = (tokens.height * s * rows, tokens.width * s * columns, 3)
        return cls(
            observation=spaces.Box(0, 255, size, np.uint8),
            action=action,
            frames=f,
            action_repeat=held,
            continuous=spec.kind == "continuous",
            acts=spec.kind != "none",
        )

    def world_actions(self, actions: Any, batch: int, who: str) -> Tensor | None:
        """The actions (b, f[, a]) of a latent step for those of a batch of environments, each from `action`.

        Raises:
            ValueError: their number, kind or shape is another.
        """
        given = np.asarray(actions)
        shape = (batch, *(self.action.shape or ()))
        kinds = "iuf" if self.continuous else "iu"
        if given.shape != shape or given.dtype.kind not in kinds:
            raise ValueError(
                f"{who}: actions must be {'numbers' if self.continuous else 'integers'} of shape {shape[1:]} for each "
                f"of {batch} environments, got {given.dtype} of {given.shape}."
            )
        if not self.acts:
            return None
        if isinstance(self.action, spaces.Box) and ((given < self.action.low) | (given > self.action.high)).any():
            raise ValueError(
                f"{who}: actions must be {self.action.low.min()} to {self.action.high.max()}, action_range, got "
                f"{given.min()} to {given.max()}."
            )
        each = given.astype(np.float32 if self.continuous else np.int64)
        if each.ndim == (2 if self.continuous else 1):  # one for the whole step
            each = each[:, None]
        return torch.from_numpy(each.repeat(self.action_repeat, axis=1))
