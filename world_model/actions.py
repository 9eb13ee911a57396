"""Actions, one per video frame: grouped by latent step, checked and embedded.

A causal tokenizer with temporal factor f encodes frame 0 as latent step 0 and frames 1+(k-1)f .. kf as step k.
`actions[i]` led from frame i-1 to frame i. Step k therefore has the f actions of its own frames, in order. Step 0 has
none: what led to frame 0 was not recorded.

Shapes: b clips, t frames, T latent steps, f frames per step, a components of a continuous action, d width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import as_int64, check_tensor
from vidtok_plugin.video.action_space import Component, components, kind_and_size, wrong_value

ActionKind = Literal["none", "discrete", "continuous", "mixed"]
MAX_DESCRIPTION = 1 << 15  # characters of JSON; the config of a saved model has a bounded size


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The kind of an action: one of `size` choices, a vector of `size` components, or none at all.

    The components of a `mixed` action are choices and continuous ones, as its `space` says: the description of a
    gymnasium space (`vidtok_plugin.video.action_space`), which other kinds may have, too. Specs are equal if the same
    weights serve them, whatever the names and bounds of the components.
    """

    kind: ActionKind = "none"
    size: int = 0
    space: dict[str, Any] | None = field(default=None, compare=False)
    choices: tuple[int, ...] = field(init=False, default=())  # of each component of a mixed action; 0: continuous

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.size == 0) != (self.kind == "none") or self.size < 0:
            raise ValueError(
                f"ActionSpec: size must be 0 for kind none and positive otherwise, got {self.size} for {self.kind}."
            )
        if self.space is None:
            if self.kind == "mixed":
                raise ValueError("ActionSpec: space must be set for kind mixed, got none; describe_space gives it.")
            return
        if (described := kind_and_size(self.space)) != (self.kind, self.size):
            raise ValueError(
                f"ActionSpec: kind and size must be those of its space, {described}, got {self.kind} and {self.size}."
            )
        if (length := len(json.dumps(self.space))) > MAX_DESCRIPTION:
            raise ValueError(
                f"ActionSpec: the JSON of its space must have at most {MAX_DESCRIPTION} characters, got {length}; give "
                "bounds that all components share as one number."
            )
        if self.kind == "mixed":
            object.__setattr__(self, "choices", tuple(component.choices for component in components(self.space)))

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The numbers of a continuous or mixed action, with their names and bounds."""
        if self.space is not None:
            return components(self.space)
        return tuple(Component(name=str(i)) for i in range(self.size if self.kind == "continuous" else 0))


@dataclass(frozen=True, kw_only=True)
class GroupedActions:
    """Actions grouped by latent step. Where `known` is False the action does not exist or is hidden from the model."""

    values: Tensor  # (b, T, f) int64, or (b, T, f, a) float
    known: Tensor  # (b, T, f) bool

    def __getitem__(self, steps: slice) -> "GroupedActions":
        """The actions of the given latent steps."""
        return GroupedActions(values=self.values[:, steps], known=self.known[:, steps])

    @property
    def num_steps(self) -> int:
        """Latent steps, T."""
        return self.known.shape[1]

    def to(self, device: torch.device | str) -> "GroupedActions":
        """These actions on another device."""
        return GroupedActions(values=self.values.to(device), known=self.known.to(device))

    def and_unknown(self) -> "GroupedActions":
        """These rows, followed by a copy of them whose actions are all unknown."""
        return GroupedActions(
            values=torch.cat([self.values, self.values]), known=torch.cat([self.known, torch.zeros_like(self.known)])
        )

    def repeated(self, times: int) -> "GroupedActions":
        """Each row repeated `times` times, copies next to each other."""
        return GroupedActions(
            values=self.values.repeat_interleave(times, dim=0), known=self.known.repeat_interleave(times, dim=0)
        )

    def rows(self, rows: Tensor) -> "GroupedActions":
        """The actions of some clips (r,)."""
        return GroupedActions(values=self.values.index_select(0, rows), known=self.known.index_select(0, rows))

    def with_rows(self, rows: Tensor, other: "GroupedActions") -> "GroupedActions":
        """A copy with the actions of some clips (r,) replaced by others."""
        return GroupedActions(
            values=self.values.index_copy(0, rows, other.values), known=self.known.index_copy(0, rows, other.known)
        )

    def padded_in_front(self, steps: int) -> "GroupedActions":
        """Padded to `steps` latent steps with unknown actions in front."""
        missing = steps - self.num_steps
        b, _, f = self.known.shape
        return GroupedActions(
            values=torch.cat([self.values.new_zeros(b, missing, *self.values.shape[2:]), self.values], dim=1),
            known=torch.cat([self.known.new_zeros(b, missing, f), self.known], dim=1),
        )

    @staticmethod
    def cat(pieces: "Sequence[GroupedActions]") -> "GroupedActions":
        """Concatenate along the latent steps."""
        return GroupedActions(
            values=torch.cat([piece.values for piece in pieces], dim=1),
            known=torch.cat([piece.known for piece in pieces], dim=1),
        )


def group_actions(actions: Tensor, temporal_factor: int) -> GroupedActions:
    """Group (b, t[, a]) actions by latent step: (b, T, f[, a]), T = 1 + ceil((t - 1) / f).

    Step 0 has no known action (`actions[:, 0]` is ignored). The missing actions of a partial last group are unknown.

    Example:
        >>> grouped = group_actions(torch.tensor([[7, 1, 2, 3, 4, 5, 6]]), temporal_factor=4)
        >>> grouped.values.tolist()
        [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 0, 0]]]
        >>> grouped.known[0, 2].tolist()
        [True, True, False, False]
    """
    if temporal_factor < 1:
        raise ValueError(f"group_actions: temporal_factor must be at least 1, got {temporal_factor}.")
    check_tensor(actions, who="group_actions", name="actions")
    if actions.ndim not in (2, 3) or actions.shape[1] == 0:
        raise ValueError(
            f"group_actions: actions must have the shape (b, t) or (b, t, a) with t >= 1, got {tuple(actions.shape)}."
        )
    b, t = actions.shape[:2]
    steps = 1 + -(-(t - 1) // temporal_factor)
    padded = actions.new_zeros(b, steps * temporal_factor, *actions.shape[2:])
    padded[:, temporal_factor : temporal_factor + t - 1] = actions[:, 1:]
    known = torch.zeros(b, steps * temporal_factor, dtype=torch.bool, device=actions.device)
    known[:, temporal_factor : temporal_factor + t - 1] = True
    return GroupedActions(
        values=rearrange(padded, "b (T f) ... -> b T f ...", f=temporal_factor),
        known=rearrange(known, "b (T f) -> b T f", f=temporal_factor),
    )


def check_actions(actions: Tensor, spec: ActionSpec, who: str, *, values: bool, first: int = 0) -> Tensor:
    """Check actions (b, t[, a]) or (b, f[, a]) against `spec` and return them as int64 or float32.

    `who` starts the error messages. Values are checked only if `values` is set, because that synchronizes a GPU, and
    from action `first` on; those before it count as 0.
    """
    if spec.kind == "none":
        raise ValueError(f"{who}: the world model was trained without actions; leave them out.")
    check_tensor(actions, who=who, name="actions")
    if spec.kind == "discrete":
        if actions.ndim != 2 or actions.is_floating_point() or actions.dtype == torch.bool:
            raise ValueError(
                f"{who}: actions must be integers of shape (b, t), got {actions.dtype} of {tuple(actions.shape)}."
            )
        codes = _without_ignored(as_int64(actions, who=who, name="actions"), first)
        if values and bool((wrong := (codes < 0) | (codes >= spec.size)).any()):
            place = tuple(wrong.nonzero()[0].tolist())
            raise ValueError(
                f"{who}: actions must be in 0..{spec.size - 1}, the world model's action space, got "
                f"{int(codes[place])} at position {place} (rollout, frame)."
            )
        return codes
    if actions.ndim != 3 or actions.shape[2] != spec.size or actions.dtype not in FLOATS:
        raise ValueError(
            f"{who}: actions must be floats of shape (b, t, {spec.size}), got {actions.dtype} of "
            f"{tuple(actions.shape)}."
        )
    vectors = _without_ignored(actions.float(), first)
    if not values:
        return vectors
    if not bool((finite := vectors.isfinite()).all()):
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{who}: actions must be finite in float32, got {actions[place].item()} at position {place} (rollout, "
            "frame, component)."
        )
    impossible = wrong_value(vectors.cpu().numpy(), spec.components) if spec.kind == "mixed" else None
    if impossible is not None:
        place, component = impossible
        raise ValueError(
            f"{who}: {component.name} of the actions must be {component.rule}, got {actions[place].item()} at position "
            f"{place} (rollout, frame, component)."
        )
    return vectors


def _without_ignored(actions: Tensor, first: int) -> Tensor:
    """The actions, with 0 in place of those before `first`, which may be anything."""
    if first == 0:
        return actions
    return torch.cat([torch.zeros_like(actions[:, :first]), actions[:, first:]], dim=1)
