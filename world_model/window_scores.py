"""Scores of windows of real tokens: how well a model predicts each token, outcome and state, for training and measures.

Shapes: b windows, T latent steps, H W rows and columns, n = H * W positions of a step, p values of a patch, d width, e
width of the tokens' narrow embeddings. Tokens are (b, T, H, W[, p]).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidtok_plugin.common.distributed import mean_over_processes
from world_model.actions import GroupedActions
from world_model.heads.base import TokenScores
from world_model.heads.outcomes import OutcomeTargets
from world_model.heads.sampler import Sampler
from world_model.heads.state import StateHead, state_errors
from world_model.inputs.corruption import corrupt_tokens, drop_actions, mix_tokens
from world_model.inputs.state import drop_state
from world_model.prediction.base import WindowInputs

if TYPE_CHECKING:
    from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class WindowLosses:
    """The mean losses of a batch of windows; None for what is not predicted or not in the data."""

    tokens: Tensor  # nats a token, or the flow's squared error
    rewards: Tensor | None  # nats a frame
    ends: Tensor | None  # nats a step
    state: Tensor | None  # squared error of normalized states, mean over frames and components


@dataclass(frozen=True, kw_only=True)
class ScoredWindow:
    """The scores of a batch of windows, and what outcomes and states are predicted from."""

    scores: TokenScores
    hidden: Tensor  # (b, T - 1, H, W, d)
    window: WindowInputs  # with the tokens as the model read them


def score_window(
    model: "WorldModel",
    tokens: Tensor,
    actions: GroupedActions | None,
    state: Tensor | None = None,
    *,
    diagonal_offset: int | None = None,
) -> ScoredWindow:
    """Score the tokens of steps 1 .. T-1, as `WorldModel.score` says."""
    tokens = model.checked(tokens)
    if tokens.shape[1] < 2:
        raise ValueError(f"WorldModel: a window must have at least 2 steps to score, got {tokens.shape[1]}.")
    inputs, corruption, config = tokens, None, model.config
    if model.training:
        if config.state is not None and config.state.dropout and state is not None:
            state = drop_state(state, config.state.dropout)
        if config.own_draws:
            inputs = mix_tokens(tokens, own_draws(model, tokens, actions, state), config.own_draws)
        if config.corruption:
            inputs, corruption = corrupt_tokens(inputs, config.corruption, model.tokens.codebook_size)
        if config.action_dropout and actions is not None:
            actions = drop_actions(actions, config.action_dropout)
    window = model.window_inputs(inputs, actions, corruption, state)
    hidden, weights = model.prediction.scored(window, diagonal_offset=diagonal_offset, seeded=not model.training)
    neighbor_codes, tables = model.neighbor_codes(inputs), model.head.tables()
    losses, correct = model.head.scores(hidden, neighbor_codes, tokens[:, 1:], tables, correct=not model.training)
    scores = TokenScores(losses=losses, correct=correct, weights=weights)
    return ScoredWindow(scores=scores, hidden=hidden, window=window)


def window_losses(
    model: "WorldModel",
    tokens: Tensor,
    actions: GroupedActions | None,
    valid: Tensor | None,
    outcomes: OutcomeTargets | None,
    state: Tensor | None,
) -> WindowLosses:
    """The mean losses over the steps that `valid` (b, T) marks, as `WorldModel.losses` says."""
    scored = score_window(model, tokens, actions, state)
    scores = scored.scores
    weight = scores.weights if valid is None else scores.weights * valid[:, 1:, None, None]

    def mean(total: Tensor, count: Tensor) -> Tensor:
        return total / (mean_over_processes(count) if model.training else count).clamp(min=1)

    rewards = ends = states = None
    steps = scores.weights.new_ones(scored.hidden.shape[:2]) if valid is None else valid[:, 1:]
    if model.state_head is not None and model.state_normalization is not None and state is not None:
        predicted = predicted_states(model, model.state_head, scored, tokens)
        errors = state_errors(predicted, model.state_normalization(state[:, 1:]))
        states = mean((errors * steps).sum(), steps.sum())
    if model.outcomes is not None and outcomes is not None:
        each = model.outcomes.losses(*head_inputs(model, scored, tokens), outcomes[1:])
        rewards, ends = (
            None if loss is None else mean((loss * steps).sum(), steps.sum()) for loss in (each.rewards, each.ends)
        )
    losses = mean((scores.token_losses * weight).sum(), weight.sum())
    return WindowLosses(tokens=losses, rewards=rewards, ends=ends, state=states)


def head_inputs(model: "WorldModel", scored: ScoredWindow, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (b, T - 1, n, d), and embeddings (b, T - 1, n, e) of the tokens of steps 1 .. T-1 and of the steps
    before.

    A step's own tokens are the true ones, for its outcomes and states are theirs; those before it are what the model
    read.
    """
    narrow, tables = model.step_inputs.narrow, scored.window.tables.narrow
    own, before = (
        narrow(x, tables).flatten(2, 3) for x in (model.checked(tokens)[:, 1:], scored.window.tokens[:, :-1])
    )
    return scored.hidden.flatten(2, 3), own, before


def predicted_states(model: "WorldModel", head: StateHead, scored: ScoredWindow, tokens: Tensor) -> Tensor:
    """The normalized states (b, T - 1, f, s) that a model's head predicts for steps 1 .. T-1."""
    window = scored.window
    assert window.past_state is not None
    predicted: Tensor = head(*head_inputs(model, scored, tokens), window.conditioning[:, 1:], window.past_state[:, 1:])
    return predicted


@torch.no_grad()
def own_draws(
    model: "WorldModel", tokens: Tensor, actions: GroupedActions | None, state: Tensor | None = None
) -> Tensor:
    """A causal model's draws of all tokens, each given the true ones before it; the first step as it is."""
    hidden = model(tokens, actions, None, state)[:, 1:].flatten(1, 3)
    neighbor_codes = model.neighbor_codes(tokens)
    if neighbor_codes is not None:
        neighbor_codes = neighbor_codes.flatten(1, 3)
    noise = torch.rand(*hidden.shape[:2], model.head.noise_per_token, device=tokens.device)
    drawn = model.head.draw(hidden, neighbor_codes, noise, Sampler(), model.head.tables(), confidence=False).tokens
    return torch.cat([tokens[:, :1], drawn.to(tokens.dtype).view_as(tokens[:, 1:])], dim=1)
