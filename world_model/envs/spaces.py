"""The spaces of imagined environments, and actions from them as a world model takes them.

A world whose actions were described has the space of the environment that they were recorded in, however nested.

Shapes: b environments, h w pixels, f frames per latent step, k actions of an environment's step, a components of an
action that is a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.action_spaces import flatten_action, space_of
from world_model.actions import ActionSpec
from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ImaginedSpaces:
    """Spaces of one environment."""

    observation: spaces.Box
    action: Space[Any]
    frames: int  # f
    action_repeat: int  # frames for which an action is held; f / k
    spec: ActionSpec
    described: Space[Any] | None  # of one action, if the world knows it; `action` is one of it, or a batch of k

    @classmethod
    def of(
        cls,
        model: WorldModel,
        adapter: TokenizerAdapter,
        action_repeat: int | None,
        action_range: tuple[float, float] | None,
        who: str,
    ) -> "ImaginedSpaces":
        """The spaces of a world. `action_repeat` frames, a divisor of f and by default f, are an action's.

        Continuous actions are bounded by `action_range`. By default these are the bounds of the space that the world
        knows, or else three deviations around the mean of the training data, or -1 to 1 if the world knows neither.
        """
        tokens = model.tokens
        f, spec, s = tokens.temporal_factor, tokens.actions, adapter.spatial_factor
        held = f if action_repeat is None else action_repeat
        if held < 1 or f % held:
            raise ValueError(
                f"{who}: action_repeat must be a divisor of {f}, the frames of a latent step, or None for all of them, "
                f"got {action_repeat}."
            )
        if action_range is not None and not action_range[0] < action_range[1]:
            raise ValueError(f"{who}: action_range must be two ascending numbers, got {action_range}.")
        if action_range is not None and spec.kind == "mixed":
            raise ValueError(
                f"{who}: action_range is for actions that are continuous in all components, got {action_range} for "
                "others; leave it out, since the world knows their bounds."
            )
        k = f // held
        described = space_of(spec.space) if spec.space is not None and action_range is None else None
        action: Space[Any]
        if described is not None:
            action = described if k == 1 else batch_space(described, k)
        elif spec.kind == "none":
            action = spaces.Discrete(1)
        elif spec.kind == "discrete":
            action = spaces.Discrete(spec.size) if k == 1 else spaces.MultiDiscrete([spec.size] * k)
        else:
            shape = (spec.size,) if k == 1 else (k, spec.size)
            usual = [bound.numpy() for bound in model.usual_actions()]
            low, high = (np.broadcast_to(np.float32(bound), shape).copy() for bound in action_range or usual)
            action = spaces.Box(low, high, shape, np.float32)
        _, rows, columns = adapter.config.patch_size
        size = (tokens.height * s * rows, tokens.width * s * columns, 3)
        return cls(
            observation=spaces.Box(0, 255, size, np.uint8),
            action=action,
            frames=f,
            action_repeat=held,
            spec=spec,
            described=described,
        )

    def separate(self, actions: Any, batch: int, who: str) -> Sequence[Any]:
        """The actions of each environment, for `world_actions`, from a batch of nested ones."""
        return actions if self.described is None else _each(self.action, actions, batch, who)

    def world_actions(self, actions: Sequence[Any], batch: int, who: str) -> Tensor | None:
        """The actions (b, f[, a]) of a latent step for those of a batch of environments, each from `action`.

        Raises:
            ValueError: their number, kind or shape is another, or one is outside the space.
        """
        if self.described is not None:
            each = self._flat_actions(actions, who)
        else:
            each = self._plain_actions(actions, batch, who)
        return None if self.spec.kind == "none" else torch.from_numpy(each.repeat(self.action_repeat, axis=1))

    def _plain_actions(self, actions: Any, batch: int, who: str) -> np.ndarray:
        """Choices (b, k) or vectors (b, k, a) of a space that the world does not describe."""
        continuous = self.spec.kind == "continuous"
        given = np.asarray(actions)
        shape = (batch, *(self.action.shape or ()))
        if given.shape != shape or given.dtype.kind not in ("iuf" if continuous else "iu"):
            raise ValueError(
                f"{who}: actions must be {'numbers' if continuous else 'integers'} of shape {shape[1:]} for each "
                f"of {batch} environments, got {given.dtype} of {given.shape}."
            )
        if isinstance(self.action, spaces.Box) and not ((given >= self.action.low) & (given <= self.action.high)).all():
            raise ValueError(
                f"{who}: actions must be {self.action.low.min()} to {self.action.high.max()}, action_range, got "
                f"{given.min()} to {given.max()}."
            )
        each = given.astype(np.float32 if continuous else np.int64)
        return each[:, None] if each.ndim == (2 if continuous else 1) else each  # one for the whole step

    def _flat_actions(self, actions: Sequence[Any], who: str) -> np.ndarray:
        """Choices (b, k) or vectors (b, k, a) of the described space."""
        assert self.described is not None and self.spec.space is not None
        k = self.frames // self.action_repeat
        of_steps = [_each(self.described, of_env, k, who) if k > 1 else [of_env] for of_env in actions]
        flat = np.array([[flatten_action(self.spec.space, x, who) for x in of_env] for of_env in of_steps])
        if self.spec.kind == "discrete":
            return flat[..., 0].astype(np.int64)
        parts = self.spec.components
        low, high = (np.array([getattr(part, name) for part in parts], np.float32) for name in ("low", "high"))
        outside = (flat < low) | (flat > high)
        if outside.any():
            place = tuple(np.argwhere(outside)[0].tolist())
            part = parts[place[-1]]
            raise ValueError(
                f"{who}: {part.name} of an action must be {part.low} to {part.high}, got {flat[place]} of environment "
                f"{place[0]}."
            )
        return flat


def _each(space: Space[Any], actions: Any, count: int, who: str) -> Sequence[Any]:
    """The single actions of a batch of `count` from a space."""
    try:
        each = list(iterate(batch_space(space, count), actions))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: actions must be {count} of {space}, got others ({error}).") from None
    if len(each) != count:
        raise ValueError(f"{who}: actions must be {count} of {space}, got {len(each)}.")
    return each
