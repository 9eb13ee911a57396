"""Measures of predicted states against copying the last one, in deviations of the training split and in own units.

Shapes: b windows or prompts, T latent steps, f frames of a step, t frames, s components of a state.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from world_model.measures.report import Measured, Row, from_to, numbers

NO_STATES = "the validation windows have no states; tokenize episodes with states (docs/recordings.md)."
DIGITS = 5


class StateScores:
    """Sums squared errors of frames' states over many windows, each frame given the real states before its step."""

    def __init__(self, std: Tensor) -> None:
        """`std` (s,) are the deviations of the training split."""
        self._std = std.cpu().double()
        self._errors: list[Tensor] = []  # (k, 2, s) float64: squared, in deviations, predicted and copied

    def add(self, predicted: Tensor, state: Tensor, valid: Tensor) -> None:
        """Add the states of steps 1 .. T-1, predicted (b, T - 1, f, s), of real ones (b, T, f, s), where `valid`
        (b, T - 1) and where they and the newest frame before the step are known."""
        real, last = state[:, 1:], state[:, :-1, -1:].expand_as(state[:, 1:])
        known = valid[..., None] & ~real.isnan().any(-1) & ~last.isnan().any(-1)
        pairs = torch.stack([predicted[known] - real[known], last[known] - real[known]], dim=1)
        self._errors.append((pairs.cpu().double() / self._std).square())

    def measured(self) -> Measured:
        """The results under the names of the report."""
        errors = torch.cat(self._errors) if self._errors else torch.zeros(0, 2, 1)
        if len(errors) == 0:
            return Measured(values={}, not_measured={"state_rmse": NO_STATES})
        rmse, copied = errors.mean((0, 2)).sqrt().tolist()
        by_component = errors.mean(0).sqrt() * self._std
        values: dict[str, Any] = {
            "state_rmse": round(rmse, DIGITS),
            "copy_state_rmse": round(copied, DIGITS),
            "state_rmse_by_component": by_component[0].tolist(),
            "copy_state_rmse_by_component": by_component[1].tolist(),
        }
        row = Row(name="state RMSE, deviations", value=f"{rmse:.4f}", compared=f"last state copied {copied:.4f}")
        return Measured(values=values, rows=[row])


def future_state_errors(predicted: Tensor, state: Tensor, prompt_frames: int, std: Tensor) -> dict[str, Tensor]:
    """Mean squared errors (b, t) of the states of imagined frames, in deviations `std` (s,), by name.

    `predicted` and `state` (b, p + t, s) begin with the prompt's. `copy_state` repeats the prompt's last state.
    """
    real, last = state[:, prompt_frames:], state[:, prompt_frames - 1 : prompt_frames]
    made = {"state": predicted[:, prompt_frames:], "copy_state": last}
    return {name: ((x - real) / std).square().mean(-1) for name, x in made.items()}


def future_rows(by_name: dict[str, Tensor]) -> tuple[dict[str, Any], list[Row]]:
    """Values and a row of the report, of errors (b, t) by name as `future_state_errors` gives them."""
    values: dict[str, Any] = {}
    series: dict[str, Sequence[float]] = {}
    for name, errors in by_name.items():
        series[name] = errors.double().mean(0).sqrt().tolist()
        values[f"{name}_rmse"] = round(float(errors.double().mean().sqrt()), DIGITS)
        values[f"{name}_rmse_by_frame"] = numbers(series[name], DIGITS)
    row = Row(
        name="state RMSE, deviations",
        value=f"{values['state_rmse']:.3f}",
        horizon=from_to(series["state"], 3),
        compared=f"last state copied {values['copy_state_rmse']:.3f}",
    )
    return values, [row]
