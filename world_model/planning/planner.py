"""Planner: chooses actions by imagining many futures from one cached past.

Three ways to search: random shooting takes the best of random plans; the cross-entropy method (CEM) draws candidates
again from a distribution fitted to the best ones; MPPI (model predictive path integral control, Williams et al., arXiv
1509.01149) weighs all candidates by the exponential of their score.

Shapes: b rows planned for, m candidates of each, t h w frames and pixels, f frames per latent step, S latent steps, a
components of a continuous action.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.precision import Precision, in_precision
from vidtok_plugin.common.tensor_checks import check_tensor
from vidtok_plugin.tokenizer.video_checks import as_float_video
from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.planning.proposals import Proposal, make_proposal
from world_model.rollout.imagination import Imagination

Method = Literal["shooting", "cem", "mppi"]


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How a planner searches.

    A plan has one action for each latent step, held for its f frames. Continuous candidates begin as Gaussian, with the
    mean and deviation of each component in the training data, or `action_mean` and `action_std` in every component, and
    are clipped to `action_range` if it is set, and to the bounds of the action space if the world knows them.
    """

    method: Method = "cem"
    horizon: int = 16  # frames that a plan covers, a multiple of f
    candidates: int = 64  # in each iteration
    iterations: int = 3  # of cem and mppi
    elites: int = 8  # of cem: the candidates that the next distribution is fitted to
    mppi_temperature: float = 0.3  # of mppi, in standard deviations of the candidates' scores
    discount: float = 1.0  # of rewards, by frame
    action_mean: float | None = None
    action_std: float | None = None
    action_range: tuple[float, float] | None = None
    precision: Precision = "auto"  # of the futures; auto: bfloat16 where it is faster
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("horizon", "candidates", "iterations", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"PlannerConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.method == "cem" and self.elites > self.candidates:
            raise ValueError(
                f"PlannerConfig: elites must be at most candidates, {self.candidates}, got {self.elites}; lower it."
            )
        for name in ("mppi_temperature", "action_std"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"PlannerConfig: {name} must be above 0, got {value}.")
        if not 0 < self.discount <= 1:
            raise ValueError(f"PlannerConfig: discount must be above 0 and at most 1, got {self.discount}.")
        if self.action_range is not None and not self.action_range[0] < self.action_range[1]:
            raise ValueError(
                f"PlannerConfig: action_range must be the smallest and the largest value, got {self.action_range}."
            )


class Planner:
    """Plans for a world model with actions; the keywords are those of `PlannerConfig`.

    `sampler` and `decoding` are those of the imagined futures: by default the likeliest tokens, in diagonal order for
    causal models. All candidates of a row draw the same random numbers, so that they differ by their actions alone.

    Raises:
        ValueError: the model has no actions, or the horizon doesn't fit it.

    Example:
        planner = Planner(model, adapter, method="cem", horizon=16, candidates=64)
        actions = planner.plan(past_video, past_actions)  # (b, 16): the actions of the next 16 frames
    """

    def __init__(
        self,
        model: WorldModel,
        adapter: TokenizerAdapter,
        *,
        sampler: Sampler | None = None,
        decoding: Decoding | None = None,
        **settings: Any,
    ) -> None:
        self.cfg = cfg = PlannerConfig(**settings)
        spec = model.tokens.actions
        if spec.kind == "none":
            raise ValueError("Planner: the world model must have actions, got one without; train it on play.")
        self.steps, rest = divmod(cfg.horizon, model.tokens.temporal_factor)
        if rest:
            raise ValueError(
                f"Planner: horizon must be a multiple of {model.tokens.temporal_factor} (the tokenizer's temporal "
                f"factor), got {cfg.horizon}; the next is {cfg.horizon - rest + model.tokens.temporal_factor}."
            )
        if self.steps >= model.config.max_steps:
            raise ValueError(
                f"Planner: horizon must be less than the model's context, {model.config.max_steps} latent steps of "
                f"{model.tokens.temporal_factor} frames, got {cfg.horizon} frames; lower it."
            )
        self.model, self.adapter = in_precision(model, cfg.precision), adapter
        self.sampler = sampler or Sampler(temperature=0.0)
        self.decoding = decoding or Decoding(order="diagonal" if model.config.prediction == "causal" else None)
        self._random = torch.Generator().manual_seed(cfg.seed)

    def plan(
        self,
        past_video: Tensor,
        past_actions: Tensor | None,
        goal: Tensor | None = None,
        *,
        past_state: Tensor | None = None,
    ) -> Tensor:
        """The actions (b, horizon) or (b, horizon, a) of the next frames.

        past_video: (b, 3, t, h, w), uint8 or float in [-1, 1]. Only its newest frames are used, as many as leave room
            for the plan in the model's context.
        past_actions: (b, t) or (b, t, a), one for each frame; None: unknown.
        goal: a picture (3, h, w) or one for each row (b, 3, h, w), uint8 or float in [-1, 1], that the last frame of
            the plan is to resemble (by squared error). None: the plan is to earn the most predicted reward.
        past_state: (b, t, s), one for each frame, for a model with states; None: unknown.

        Raises:
            ValueError: the model predicts no rewards and there is no goal, or the past or the goal doesn't fit it.
        """
        if goal is None and (self.model.config.outcomes is None or not self.model.config.outcomes.rewards):
            raise ValueError(
                "Planner: without a goal the world model must predict rewards; train it with model.outcomes, or give a "
                "goal."
            )
        past = self._past(past_video, past_actions, past_state)
        target = None if goal is None else self._target(goal, past)
        cfg = self.cfg
        spec = self.model.tokens.actions
        proposal = make_proposal(spec, past.batch, self.steps, self._random, *self._first_plan())
        plans = self._candidates(proposal)
        scores = self._scores(past, plans, target)
        best = _best(plans, scores)
        for _ in range(0 if cfg.method == "shooting" else cfg.iterations - 1):
            proposal.fit(plans, self._weights(scores))
            plans = self._candidates(proposal)
            scores = self._scores(past, plans, target)
            best = _best(torch.cat([best[0][:, None], plans], dim=1), torch.cat([best[1][:, None], scores], dim=1))
        best_plans = best[0]
        if cfg.method == "mppi" and spec.kind == "continuous":  # the weighted mean; choices have none
            proposal.fit(plans, self._weights(scores))
            best_plans = proposal.mode
        return best_plans.repeat_interleave(self.held, dim=1).to(self.model.device)

    def _first_plan(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (a,) that the components of continuous actions are first drawn with; empty for choices."""
        normalization = self.model.action_normalization
        if normalization is None:
            return torch.zeros(0), torch.ones(0)
        mean, std = normalization.mean.cpu(), normalization.std.cpu()
        if self.cfg.action_mean is not None:
            mean = torch.full_like(mean, self.cfg.action_mean)
        if self.cfg.action_std is not None:
            std = torch.full_like(std, self.cfg.action_std)
        return mean, std

    def _candidates(self, proposal: Proposal) -> Tensor:
        """Plans (b, m, S[, a])."""
        plans = proposal.sample(self.cfg.candidates)
        parts = self.model.tokens.actions.components
        if not parts:
            return plans
        low, high = self.cfg.action_range or (-inf, inf)
        bounds = [(0, p.choices - 1) if p.choices else (max(low, p.low), min(high, p.high)) for p in parts]
        lows, highs = torch.tensor(bounds).unbind(-1)
        return plans.clamp(lows, highs)

    def _past(self, video: Tensor, actions: Tensor | None, state: Tensor | None = None) -> Imagination:
        """The newest frames that leave room for the plan, ready to be forked."""
        check_tensor(video, who="Planner", name="past_video")
        f, kept = self.model.tokens.temporal_factor, self.model.config.max_steps - self.steps
        if video.ndim != 5 or video.shape[2] < 1:
            raise ValueError(
                f"Planner: past_video must have the shape (b, 3, t, h, w) with t >= 1, got {tuple(video.shape)}."
            )
        frames = 1 + min((video.shape[2] - 1) // f, kept - 1) * f
        if actions is not None:
            check_tensor(actions, who="Planner", name="past_actions")
            if actions.ndim < 2 or actions.shape[1] != video.shape[2]:
                raise ValueError(
                    f"Planner: past_actions must have one action for each of the {video.shape[2]} frames of "
                    f"past_video, shape (b, {video.shape[2]}[, a]), got {tuple(actions.shape)}."
                )
            actions = actions[:, -frames:]
        if state is not None:
            check_tensor(state, who="Planner", name="past_state")
            if state.ndim != 3 or state.shape[1] != video.shape[2]:
                raise ValueError(
                    f"Planner: past_state must have one state for each of the {video.shape[2]} frames of past_video, "
                    f"shape (b, {video.shape[2]}, s), got {tuple(state.shape)}."
                )
            state = state[:, -frames:]
        return Imagination(
            self.model,
            self.adapter,
            prompts=video[:, :, -frames:],
            actions=actions,
            sampler=self.sampler,
            decoding=self.decoding,
            state=state,
            who="Planner",
        )

    def _target(self, goal: Tensor, past: Imagination) -> Tensor:
        """The goal of each row, (b, 3, h, w) in [-1, 1]."""
        check_tensor(goal, who="Planner", name="goal")
        size = tuple(past.frames.shape[3:])
        shapes = ((3, *size), (past.batch, 3, *size))
        if tuple(goal.shape) not in shapes:
            raise ValueError(
                f"Planner: goal must be a picture {shapes[0]}, or one for each row {shapes[1]}, got "
                f"{tuple(goal.shape)}."
            )
        video = goal.expand(past.batch, -1, -1, -1)[:, :, None]
        return as_float_video(video, who="Planner", spatial_factor=1, dtype=torch.float32, validate=True)[:, :, 0].to(
            past.frames.device
        )

    @property
    def held(self) -> int:
        """The number of frames for which a plan holds each action, f."""
        return self.model.tokens.temporal_factor

    @torch.no_grad()
    def _scores(self, past: Imagination, plans: Tensor, target: Tensor | None) -> Tensor:
        """How good each plan (b, m, S[, a]) is, (b, m): its rewards, or minus its end's squared error to the target."""
        rows, count = plans.shape[:2]
        actions = plans.flatten(0, 1).repeat_interleave(self.held, dim=1).to(self.model.device)
        steps = actions.unflatten(1, (self.steps, -1)).unbind(1)  # (b * m, f[, a]) each
        if target is not None:
            futures = past.fork(count)
            for step in steps:
                frames = futures.step(step).frames
            errors = (frames[:, :, -1] - target.repeat_interleave(count, dim=0)).square().flatten(1).mean(1)
            return -errors.view(rows, count).cpu()
        generator = past.generator.fork(count)  # rewards need no frames
        total = alive = torch.ones(rows * count, device=self.model.device)
        total = total * 0
        discounts = self.cfg.discount ** torch.arange(self.cfg.horizon, device=self.model.device).view(self.steps, -1)
        for step, discount in zip(steps, discounts, strict=True):
            generator.step(whole_steps(step[:, None]))
            outcomes = generator.outcomes
            assert outcomes is not None and outcomes.rewards is not None
            total = total + alive * (outcomes.rewards * discount).sum(1)
            if outcomes.end_probability is not None:
                alive = alive * (1 - outcomes.end_probability)
        return total.view(rows, count).cpu()

    def _weights(self, scores: Tensor) -> Tensor:
        """The weights (b, m) by which the next distribution is fitted to candidates with these scores."""
        if self.cfg.method == "cem":
            best = scores.topk(self.cfg.elites, dim=1).indices
            return torch.zeros_like(scores).scatter(1, best, 1 / self.cfg.elites)
        spread = scores.std(1, keepdim=True, correction=0).clamp(min=1e-6)
        return (scores / (self.cfg.mppi_temperature * spread)).softmax(1)


def _best(plans: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The plan (b, S[, a]) with the best score of each row, and that score (b,)."""
    return plans[torch.arange(len(plans)), scores.argmax(1)], scores.amax(1)


def whole_steps(actions: Tensor) -> GroupedActions:
    """The actions (b, T, f[, a]) of whole latent steps, all known."""
    return GroupedActions(values=actions, known=torch.ones(actions.shape[:3], dtype=torch.bool, device=actions.device))
