"""Teacher-forced measures: how well each held-out token is predicted from the real tokens before it.

Shapes: b windows, T latent steps, H W rows and columns, k factors of a token.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.common.devices import for_float64
from world_model.data import window_actions, window_outcomes, window_state, window_tokens
from world_model.measures.baselines import Baselines
from world_model.measures.outcomes import OutcomeScores
from world_model.measures.report import Measured, Row, from_to, numbers
from world_model.measures.state import StateScores
from world_model.model import WorldModel

NO_ACCURACY = "continuous tokens have no accuracy; look at flow_loss."
NO_NATS = "continuous tokens have no cross entropy; compare flow_loss between models of the same tokens."


class StepSums:
    """Sums one number per factor of every token over many windows, by step of the window and position.

    A token's number is the sum over its factors. Steps that are not valid don't count.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (T - 1, H, W, k) float64
        self._counts: Tensor | None = None  # (T - 1,) windows

    def add(self, values: Tensor, valid: Tensor, weights: Tensor | None = None) -> None:
        """Add values (b, T - 1, H, W, k) where `valid` (b, T - 1), times `weights` (b, T - 1, H, W) with mean 1."""
        if weights is not None:
            values = values * weights[..., None]
        values, weight = for_float64(values), valid[:, :, None, None, None]
        sums = torch.where(weight.to(values.device), values.double(), 0.0).sum(0).cpu()
        counts = valid.sum(0).cpu().double()
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = counts if self._counts is None else self._counts + counts

    def _totals(self) -> tuple[Tensor, Tensor]:
        if self._sums is None or self._counts is None or float(self._counts.sum()) == 0:
            raise ValueError("teacher_forced: there must be at least one step to score, got none.")
        return self._sums, self._counts

    @property
    def by_factor(self) -> list[float]:
        """The mean per factor."""
        sums, counts = self._totals()
        return (sums.mean((1, 2)).sum(0) / counts.sum()).tolist()

    @property
    def mean(self) -> float:
        """The mean per token."""
        return sum(self.by_factor)

    @property
    def by_step(self) -> list[float]:
        """The mean at each step after a window's first, up to the longest window."""
        sums, counts = self._totals()
        reached = counts > 0
        return (sums.sum(-1).mean((1, 2))[reached] / counts[reached]).tolist()

    @property
    def by_position(self) -> list[list[float]]:
        """The mean at each position, as rows of columns."""
        sums, counts = self._totals()
        return (sums.sum((0, 3)) / counts.sum()).tolist()


@dataclass(frozen=True, kw_only=True)
class TeacherForced:
    """Losses and correct predictions over the same tokens; None for continuous tokens or without baselines."""

    losses: StepSums
    unigram: StepSums | None = None
    copy: StepSums | None = None
    correct: StepSums | None = None  # tokens with all factors right, each given the real factors before it
    correct_factors: StepSums | None = None
    unchanged: StepSums | None = None  # tokens equal to the previous step's: the accuracy of copying
    outcomes: Measured = field(default_factory=lambda: Measured(values={}))
    state: Measured = field(default_factory=lambda: Measured(values={}))

    def measured(self) -> Measured:
        """The results under the names of the report."""
        tokens = self._tokens()
        return Measured(
            values={**tokens.values, **self.outcomes.values, **self.state.values},
            rows=[*tokens.rows, *self.outcomes.rows, *self.state.rows],
            not_measured={**tokens.not_measured, **self.outcomes.not_measured, **self.state.not_measured},
        )

    def _tokens(self) -> Measured:
        if self.correct is None or self.correct_factors is None or self.unchanged is None:
            return self._continuous()
        values: dict[str, Any] = {}
        rows = []
        others = {"unigram_": self.unigram, "copy_": self.copy}
        for prefix, losses in {"": self.losses, **others}.items():
            if losses is not None:
                values[f"{prefix}cross_entropy"] = round(losses.mean, 5)
                values[f"{prefix}cross_entropy_by_factor"] = numbers(losses.by_factor, 5)
                values[f"{prefix}cross_entropy_by_step"] = numbers(losses.by_step, 5)
        known = {prefix[:-1]: losses for prefix, losses in others.items() if losses is not None}
        rows.append(
            Row(
                name="cross entropy, nats per token",
                value=f"{self.losses.mean:.3f}",
                horizon=from_to(self.losses.by_step, 3),
                compared=", ".join(f"{name} {losses.mean:.3f}" for name, losses in known.items()),
            )
        )
        factors = self.losses.by_factor
        for index, loss in enumerate(factors if len(factors) > 1 else []):
            compared = ", ".join(f"{name} {losses.by_factor[index]:.3f}" for name, losses in known.items())
            given = " given the ones before" if index else ""
            rows.append(Row(name=f"  of factor {index}{given}", value=f"{loss:.3f}", compared=compared))
        values["accuracy"] = round(self.correct.mean, 5)
        values["accuracy_by_factor"] = numbers(self.correct_factors.by_factor, 5)
        values["accuracy_by_step"] = numbers(self.correct.by_step, 5)
        values["accuracy_by_position"] = [numbers(row, 5) for row in self.correct.by_position]
        values["copy_accuracy"] = round(self.unchanged.mean, 5)
        values["copy_accuracy_by_step"] = numbers(self.unchanged.by_step, 5)
        values["copy_accuracy_by_position"] = [numbers(row, 5) for row in self.unchanged.by_position]
        values["cross_entropy_by_position"] = [numbers(row, 5) for row in self.losses.by_position]
        rows.append(
            Row(
                name="accuracy",
                value=f"{self.correct.mean:.3f}",
                horizon=from_to(self.correct.by_step, 3),
                compared=f"copy {self.unchanged.mean:.3f}",
            )
        )
        for index, accuracy in enumerate(self.correct_factors.by_factor if len(factors) > 1 else []):
            rows.append(Row(name=f"  of factor {index}", value=f"{accuracy:.3f}"))
        return Measured(values=values, rows=rows)

    def _continuous(self) -> Measured:
        values = {
            "flow_loss": round(self.losses.mean, 6),
            "flow_loss_by_step": numbers(self.losses.by_step, 6),
            "flow_loss_by_position": [numbers(row, 6) for row in self.losses.by_position],
        }
        row = Row(
            name="flow-matching loss, squared error",
            value=f"{self.losses.mean:.4f}",
            horizon=from_to(self.losses.by_step, 4),
        )
        return Measured(values=values, rows=[row], not_measured={"accuracy": NO_ACCURACY, "cross_entropy": NO_NATS})


@torch.no_grad()
def teacher_forced(
    model: WorldModel,
    batches: Iterable[TensorDict],
    baselines: Baselines | None,
    *,
    advance: Callable[[int], None] = lambda windows: None,
) -> TeacherForced:
    """Score every step but the first of batches of windows.

    `advance` is called with the number of windows of each finished batch.

    Raises:
        ValueError: there are no steps to score.
    """
    names = ("losses", "unigram", "copy", "correct", "correct_factors", "unchanged")
    sums = {name: StepSums() for name in names}
    outcomes = OutcomeScores()
    normalization = model.state_normalization
    states = None if normalization is None else StateScores(normalization.std)
    discrete = False
    for batch in batches:
        tokens, valid = window_tokens(batch), batch["valid"][:, 1:]
        on_device = batch.to(model.device)
        state = None if states is None else window_state(on_device)
        scores = model.score(window_tokens(on_device), window_actions(on_device), state=state)
        sums["losses"].add(scores.losses, valid, scores.weights)
        if scores.correct is not None:
            discrete = True
            sums["correct"].add(scores.correct.all(-1, keepdim=True), valid, scores.weights)
            sums["correct_factors"].add(scores.correct, valid, scores.weights)
            sums["unchanged"].add((tokens[:, 1:] == tokens[:, :-1])[..., None], valid)
        if baselines is not None:
            unigram, copy = baselines.token_losses(tokens)
            sums["unigram"].add(unigram, valid)
            sums["copy"].add(copy, valid)
        if model.outcomes is not None:
            predicted = model.window_outcomes(window_tokens(on_device), window_actions(on_device), state)
            outcomes.add(predicted, window_outcomes(on_device)[1:], on_device["valid"][:, 1:])
        if states is not None and state is not None:
            made = model.window_states(window_tokens(on_device), window_actions(on_device), state)
            states.add(made, state, on_device["valid"][:, 1:])
        advance(len(tokens))
    config = model.config.outcomes
    measured = Measured(values={})
    if config is not None:
        measured = outcomes.measured(rewards=config.rewards, ends=config.ends)
    of_states = Measured(values={}) if states is None else states.measured()
    if not discrete:
        return TeacherForced(losses=sums["losses"], outcomes=measured, state=of_states)
    kept = names if baselines is not None else ("losses", "correct", "correct_factors", "unchanged")
    return TeacherForced(**{name: sums[name] for name in kept}, outcomes=measured, state=of_states)
