"""Actions, one per video frame: grouped by latent step, checked and embedded.

A causal tokenizer with temporal factor f encodes frame 0 as latent step 0 and frames 1+(k-1)f .. kf as step k.
`actions[i]` led from frame i-1 to frame i. Step k therefore has the f actions of its own frames, in order. Step 0 has
none: what led to frame 0 was not recorded.

Shapes: b clips, t frames, T latent steps, f frames per step, a components of a continuous action, d width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import as_int64, check_tensor

ActionKind = Literal["none", "discrete", "continuous"]


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """The kind of an action: one of `size` choices, a vector of `size` components, or none at all."""

    kind: ActionKind = "none"
    size: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.size == 0) != (self.kind == "none") or self.size < 0:
            raise ValueError(
                f"ActionSpec: size must be 0 for kind none and positive otherwise, got {self.size} for {self.kind}."
            )


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
        return self.known.shape[1]

    def to(self, device: torch.device | str) -> "GroupedActions":
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
    components = _without_ignored(actions.float(), first)
    if values and not bool((finite := components.isfinite()).all()):
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{who}: actions must be finite in float32, got {actions[place].item()} at position {place} (rollout, "
            "frame, component)."
        )
    return components


def _without_ignored(actions: Tensor, first: int) -> Tensor:
    """The actions, with 0 in place of those before `first`, which may be anything."""
    if first == 0:
        return actions
    return torch.cat([torch.zeros_like(actions[:, :first]), actions[:, first:]], dim=1)


class ActionEmbedding(nn.Module):
    """Embeds the f actions of a latent step as one vector: embed each, concatenate in order, project.

    Continuous actions are normalized by the buffers `mean` and `std` (a,), 0 and 1 unless `set_statistics` was called,
    which stay float32 whatever the precision of the model. The projection starts at zero, so an untrained model ignores
    actions. Unknown actions share one learned embedding.
    """

    def __init__(self, spec: ActionSpec, temporal_factor: int, width: int, action_width: int = 32) -> None:
        super().__init__()
        if spec.kind == "none":
            raise ValueError("ActionEmbedding: the action kind must be discrete or continuous, got none.")
        self.spec = spec
        self.temporal_factor = temporal_factor
        self.mean: Tensor
        self.std: Tensor
        self.embed: nn.Module = (
            nn.Embedding(spec.size, action_width) if spec.kind == "discrete" else nn.Linear(spec.size, action_width)
        )
        if spec.kind == "continuous":
            for name, values in identity_statistics(spec).items():
                self.register_buffer(name, values)
            self.register_load_state_dict_pre_hook(_complete_statistics)
        self.unknown = nn.Parameter(torch.zeros(action_width))
        self.join = nn.Linear(temporal_factor * action_width, width)
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation (a,) of continuous actions in the training data."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActionEmbedding":
        """Moves the module; in another precision, a mean of 1000 would be off by more than a deviation of 1."""
        before = [(name, buffer) for name, buffer in self._buffers.items() if buffer is not None]
        super()._apply(fn, recurse)
        for name, values in before:
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != values.dtype:
                self._buffers[name] = values.to(moved.device)
        return self

    def forward(self, actions: GroupedActions) -> Tensor:
        """(b, T, f[, a]) -> (b, T, d)."""
        if actions.known.shape[2] != self.temporal_factor:
            raise ValueError(
                f"ActionEmbedding: each latent step must have {self.temporal_factor} actions (the tokenizer's "
                f"temporal factor), got {actions.known.shape[2]}; group them with group_actions."
            )
        values = actions.values
        if self.spec.kind == "continuous":
            # Actions are float32, whatever the precision of the model.
            values = ((values - self.mean) / self.std).to(self.unknown.dtype)
        embedded = torch.where(actions.known[..., None], self.embed(values), self.unknown)
        joined = self.join(rearrange(embedded, "b T f e -> b T (f e)"))
        return self.project(nn.functional.silu(joined))


def identity_statistics(spec: ActionSpec) -> dict[str, Tensor]:
    """The statistics of an `ActionEmbedding` that leave actions as they are, by name; none for discrete actions."""
    if spec.kind != "continuous":
        return {}
    return {"mean": torch.zeros(spec.size), "std": torch.ones(spec.size)}


def with_statistics(weights: Mapping[str, Tensor], spec: ActionSpec, prefix: str) -> dict[str, Tensor]:
    """Weights of a model with an `ActionEmbedding` at `prefix`, completed by the identity if they lack its statistics:
    models that were saved before there were any read their actions as they are.

    Raises:
        ValueError: a standard deviation is not above 0.
    """
    completed = {prefix + name: values for name, values in identity_statistics(spec).items()} | dict(weights)
    std = completed.get(f"{prefix}std") if spec.kind == "continuous" else None
    if std is not None and not bool((std > 0).all()):
        raise ValueError(
            f"WorldModel: {prefix}std must be above 0, got {std.min().item()}; the weights are damaged: fetch them "
            "again."
        )
    return completed


def _complete_statistics(module: ActionEmbedding, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.update(with_statistics(state_dict, module.spec, prefix))
