"""The embedding of a latent step's actions, of whatever kind, with the statistics that normalize continuous ones.

Shapes: b clips, T latent steps, f frames per step, a components of an action that is a vector, e d widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.normalization import Normalization
from world_model.actions import ActionSpec, GroupedActions


class ActionEmbedding(nn.Module):
    """Embeds the f actions of a latent step as one vector: embed each, concatenate in order, project.

    Continuous components are normalized by the statistics in `normalize`. The projection starts at zero, so an
    untrained model ignores actions. Unknown actions share one learned embedding.
    """

    def __init__(self, spec: ActionSpec, temporal_factor: int, width: int, action_width: int = 32) -> None:
        super().__init__()
        if spec.kind == "none":
            raise ValueError("ActionEmbedding: the action kind must not be none.")
        self.spec = spec
        self.temporal_factor = temporal_factor
        self.normalize: Normalization | None = None
        if spec.kind != "discrete":
            self.normalize = Normalization(spec.size)
            self.register_load_state_dict_pre_hook(_complete_statistics)
        self.embed: nn.Module
        if spec.kind == "mixed":
            self.embed = VectorEmbedding(spec.choices, action_width)
        else:
            self.embed = (
                nn.Embedding(spec.size, action_width) if spec.kind == "discrete" else nn.Linear(spec.size, action_width)
            )
        self.unknown = nn.Parameter(torch.zeros(action_width))
        self.join = nn.Linear(temporal_factor * action_width, width)
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalize continuous components by a mean and standard deviation (a,); choices stay as they are."""
        assert self.normalize is not None
        if self.spec.choices:
            chosen = torch.tensor(self.spec.choices) > 0
            mean, std = mean.masked_fill(chosen, 0), std.masked_fill(chosen, 1)
        self.normalize.set_statistics(mean, std)

    def forward(self, actions: GroupedActions) -> Tensor:
        """(b, T, f[, a]) -> (b, T, d)."""
        if actions.known.shape[2] != self.temporal_factor:
            raise ValueError(
                f"ActionEmbedding: each latent step must have {self.temporal_factor} actions (the tokenizer's "
                f"temporal factor), got {actions.known.shape[2]}; group them with group_actions."
            )
        values = actions.values
        if self.normalize is not None:
            values = self.normalize(values)  # in float32, whatever the precision of the model
        if self.spec.kind == "continuous":
            values = values.to(self.unknown.dtype)
        embedded = torch.where(actions.known[..., None], self.embed(values), self.unknown)
        joined = self.join(rearrange(embedded, "b T f e -> b T (f e)"))
        return self.project(nn.functional.silu(joined))


class VectorEmbedding(nn.Module):
    """Actions of several parts, float32 (..., a) -> (..., e): the sum of an embedding for each choice, and of a
    projection of the continuous components.

    choices: (a,), the number of choices of each part, 0 for a continuous component.
    """

    def __init__(self, choices: Sequence[int], width: int) -> None:
        super().__init__()
        chosen = [i for i, count in enumerate(choices) if count]
        measured = [i for i, count in enumerate(choices) if not count]
        counts = torch.tensor([choices[i] for i in chosen])
        self.chosen: Tensor
        self.measured: Tensor
        self.first: Tensor
        self.register_buffer("chosen", torch.tensor(chosen), persistent=False)
        self.register_buffer("measured", torch.tensor(measured, dtype=torch.int64), persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)  # row of each part's choice 0
        self.table = nn.Embedding(sum(choices), width)
        nn.init.normal_(self.table.weight, std=len(chosen) ** -0.5)
        self.project = nn.Linear(len(measured), width) if measured else None

    def forward(self, values: Tensor) -> Tensor:
        rows = values[..., self.chosen].long() + self.first
        embedded: Tensor = self.table(rows).sum(-2)
        if self.project is not None:
            embedded = embedded + self.project(values[..., self.measured].to(embedded.dtype))
        return embedded


STATISTICS = {"normalize.mean": 0.0, "normalize.std": 1.0}  # of an `ActionEmbedding`, and what changes nothing


def with_statistics(weights: Mapping[str, Tensor], spec: ActionSpec, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a model with an `ActionEmbedding` at `prefix`, completed by 0 and 1 if they lack its statistics.

    Models that were saved before there were any read their actions as they are.
    """
    if spec.kind in ("none", "discrete"):
        return dict(weights)
    return {prefix + name: torch.full((spec.size,), value) for name, value in STATISTICS.items()} | dict(weights)


def _complete_statistics(module: ActionEmbedding, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict.update(with_statistics(state_dict, module.spec, prefix))
