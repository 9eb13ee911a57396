"""Measures of predicted outcomes: rewards and ends of held-out steps, given the real tokens, against a constant.

Shapes: b windows, T latent steps, f frames of a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import pearson_corrcoef

from vidtok_plugin.store.shards import UNKNOWN_END
from world_model.heads.outcomes import Outcomes, OutcomeTargets
from world_model.measures.report import Measured, Row

NO_REWARDS = "the validation windows have no rewards, or only equal ones."
NO_ENDS = "the validation windows have no ends, or nothing else; use longer or more episodes."


class OutcomeScores:
    """Collects predicted and real outcomes of many windows."""

    def __init__(self) -> None:
        self._rewards: list[tuple[Tensor, Tensor]] = []  # predicted and real, of frames
        self._ends: list[tuple[Tensor, Tensor]] = []  # probability and whether it ended, of steps

    def add(self, predicted: Outcomes, real: OutcomeTargets, valid: Tensor) -> None:
        """Add the outcomes of steps 1 .. T-1, where `valid` (b, T - 1) and where they are known."""
        if predicted.rewards is not None and real.rewards is not None:
            known = valid[..., None] & ~real.rewards.isnan()
            self._rewards.append((predicted.rewards[known].cpu(), real.rewards[known].cpu()))
        if predicted.end_probability is not None and real.terminated is not None:
            known = valid & (real.terminated != UNKNOWN_END)
            self._ends.append((predicted.end_probability[known].cpu(), (real.terminated[known] == 1).cpu()))

    def measured(self, *, rewards: bool, ends: bool) -> Measured:
        """The results for a model that predicts `rewards`, `ends` or both, under the names of the report."""
        values: dict[str, Any] = {}
        rows: list[Row] = []
        missing: dict[str, str] = {}
        predicted, real = _joined(self._rewards)
        if rewards and len(real) > 1 and real.std() > 0:
            error, constant = ((real - guess).square().mean().item() for guess in (predicted, real.mean()))
            correlation = float(pearson_corrcoef(predicted, real)) if predicted.std() > 0 else 0.0
            values |= {
                "reward_correlation": round(correlation, 4),
                "reward_squared_error": round(error, 6),
                "reward_squared_error_constant": round(constant, 6),
            }
            compared = f"constant 0; squared error {error:.4f}, constant {constant:.4f}"
            rows.append(Row(name="reward correlation, by frame", value=f"{correlation:.3f}", compared=compared))
        elif rewards:
            missing["reward_correlation"] = NO_REWARDS
        probability, ended = _joined(self._ends)
        if ends and 0 < ended.sum() < len(ended):
            area = float(binary_auroc(probability, ended.long()))
            values |= {"end_auc": round(area, 4), "ends": int(ended.sum()), "end_steps": len(ended)}
            compared = f"constant 0.5; {int(ended.sum())} of {len(ended)} steps end"
            rows.append(Row(name="end AUC, by step", value=f"{area:.3f}", compared=compared))
        elif ends:
            missing["end_auc"] = NO_ENDS
        return Measured(values=values, rows=rows, not_measured=missing)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not pairs:
        return torch.zeros(0), torch.zeros(0)
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)
