"""Imagined futures scored against the real ones: PSNR, SSIM and LPIPS by horizon, FVD, effect of the actions.

Shapes: b prompts, t h w frames and pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.metrics import fvd
from vidtok_plugin.metrics.frames import SSIM_WINDOW, bounded_psnr, frame_ssim
from vidtok_plugin.metrics.fvd import I3D, FrechetVideoDistance
from vidtok_plugin.metrics.lpips import LPIPS, MIN_SIZE
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.measures.controllability import ActionEffect, action_effect, others_actions
from world_model.measures.prompts import Prompts
from world_model.measures.report import Measured, Row, from_to, numbers
from world_model.measures.state import future_rows, future_state_errors
from world_model.model import WorldModel
from world_model.rollout.rollout import RolloutResult, rollout
from world_model.rollout.tokens import reconstruct as reconstruct_prompts

LPIPS_BATCH = 8  # frames
UNITS = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4)}
NO_ACTIONS = "the world model was trained without actions; record them with the videos."
ONE_PROMPT = "it needs a second prompt's actions; raise measures.prompts or record more."


@dataclass(frozen=True, kw_only=True)
class Futures:
    """Futures (b, 3, t, h, w) of some prompts: imagined ones and those to compare with."""

    prompts: Prompts
    result: RolloutResult  # under the real actions
    others: Tensor | None  # imagined under other actions
    copied: Tensor  # the prompt's last frame, reconstructed by the tokenizer and repeated
    reconstructed: Tensor | None  # the real future, reconstructed by the tokenizer: an upper bound for the world model
    state_errors: Mapping[str, Tensor]  # (b, t) by name, of `future_state_errors`; empty without states


@torch.no_grad()
def imagine(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompts: Prompts,
    *,
    others: Tensor | None,
    sampler: Sampler,
    decoding: Decoding | None = None,
    indices: range | None = None,
    reconstruct: bool = True,
) -> Futures:
    """Roll out every prompt under its real actions and, if given, under `others`."""
    prompts = prompts.to(model.device)
    frames = prompts.future.shape[2]

    def imagined(actions: Tensor | None) -> RolloutResult:
        return rollout(
            model,
            adapter,
            prompt=prompts.prompt,
            actions=actions,
            num_frames=frames,
            sampler=sampler,
            decoding=decoding,
            indices=indices,
            state=None if model.state_head is None else prompts.prompt_state,
        )

    result = imagined(prompts.actions)
    reconstructed = None
    if reconstruct:
        reconstructed = reconstruct_prompts(adapter, prompts.video)[:, :, prompts.prompt_frames :]
    errors: dict[str, Tensor] = {}
    if model.state_normalization is not None and result.state is not None and prompts.state is not None:
        std = model.state_normalization.std
        errors = future_state_errors(result.state, prompts.state, prompts.prompt_frames, std)
    return Futures(
        prompts=prompts,
        result=result,
        others=None if others is None else imagined(others.to(model.device)).imagined,
        copied=result.prompt_reconstruction[:, :, -1:].expand_as(prompts.future),
        reconstructed=reconstructed,
        state_errors=errors,
    )


class FutureScores:
    """Accumulates the scores of futures over batches, without keeping the videos.

    Scores are kept per prompt and frame, so they show the horizon and allow tests of significance.
    """

    def __init__(self, lpips: LPIPS | None = None, i3d: I3D | None = None) -> None:
        self.lpips, self.i3d = lpips, i3d
        self.fvd = FrechetVideoDistance()
        self._batches: dict[str, list[Tensor]] = {}

    def add(self, futures: Futures) -> None:
        """Score a batch of futures."""
        real, imagined = futures.prompts.future, futures.result.imagined
        for name, video in (("", imagined), ("copy_", futures.copied), ("tokenizer_", futures.reconstructed)):
            if video is None:
                continue
            for metric, values in self._frame_scores(real, video).items():
                self._batches.setdefault(f"{name}{metric}", []).append(values.cpu())
        for name, errors in futures.state_errors.items():
            self._batches.setdefault(name, []).append(errors.cpu())
        if futures.others is not None:
            self._batches.setdefault("others_psnr", []).append(bounded_psnr(real, futures.others).cpu())
        if self.i3d is not None:
            self.fvd.update(torch.stack([self.i3d(real), self.i3d(imagined)]))

    def _frame_scores(self, real: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The metrics by name, (b, t) each."""
        made = made.clamp(-1, 1)
        scores = {"psnr": bounded_psnr(real, made)}
        if min(real.shape[-2:]) >= SSIM_WINDOW:
            scores["ssim"] = frame_ssim(real, made)
        if self.lpips is not None:
            frames = [rearrange(x, "b c t h w -> (b t) c h w").split(LPIPS_BATCH) for x in (real, made)]
            distances = torch.cat([self.lpips(a, b) for a, b in zip(*frames, strict=True)])
            scores["lpips"] = rearrange(distances, "(b t) -> b t", b=len(real))
        return scores

    def all(self) -> dict[str, Tensor]:
        """The scores (b, t) of all prompts, by name.

        `psnr`, `ssim` and `lpips` are the world model's. With the prefix `copy_` they are those of repeating the
        prompt's last frame, with `tokenizer_` those of the tokenizer alone. `state` and `copy_state` are squared errors
        of states.
        """
        return {name: torch.cat(batches) for name, batches in self._batches.items()}

    def action_effect(self) -> ActionEffect | None:
        """The effect of the actions on PSNR; None if no futures under other actions were scored."""
        scores = self.all()
        if "others_psnr" not in scores:
            return None
        return action_effect(scores["psnr"].mean(1), scores["others_psnr"].mean(1))


@dataclass(frozen=True, kw_only=True)
class PromptThenFree:
    """Scores (b, t) by name, and the measures over all prompts together."""

    scores: Mapping[str, Tensor]
    effect: ActionEffect | None
    fvd: float | None
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def measured(self) -> Measured:
        """The results under the names of the report."""
        rows: list[Row] = []
        values: dict[str, Any] = {"prompts": len(self.scores["psnr"])}
        not_measured = dict(self.not_measured)
        by_frame = {name: score.double().mean(0).tolist() for name, score in self.scores.items()}
        means = {name: sum(series) / len(series) for name, series in by_frame.items()}
        for metric, (title, digits) in UNITS.items():
            if metric not in by_frame:
                continue
            for name in (metric, f"copy_{metric}", f"tokenizer_{metric}"):
                values[name] = round(means[name], 5)
                values[f"{name}_by_frame"] = numbers(by_frame[name], 5)
            copied, best = means[f"copy_{metric}"], means[f"tokenizer_{metric}"]
            rows.append(
                Row(
                    name=title,
                    value=f"{means[metric]:.{digits}f}",
                    horizon=from_to(by_frame[metric], digits),
                    compared=f"last frame copied {copied:.{digits}f}, tokenizer alone {best:.{digits}f}",
                )
            )
        if "state" in self.scores:
            of_states, state_rows = future_rows({name: self.scores[name] for name in ("state", "copy_state")})
            values |= of_states
            rows += state_rows
        if self.fvd is not None:
            values["fvd"] = round(self.fvd, 3)
            compared = f"over {values['prompts']} clips; fewer clips give higher values"
            rows.append(Row(name="FVD", value=f"{self.fvd:.1f}", compared=compared))
        if self.effect is not None:
            effect = self.effect
            values["action_delta_psnr"] = round(effect.delta_psnr, 5)
            values["action_delta_psnr_interval"] = numbers([effect.low, effect.high], 5)
            rows.append(
                Row(
                    name="delta PSNR of the actions, dB",
                    value=f"{effect.delta_psnr:.2f}",
                    compared=f"95% interval {effect.low:.2f} to {effect.high:.2f}; 0 if actions are ignored",
                )
            )
        return Measured(values=values, rows=rows, not_measured=not_measured)


def prompt_then_free(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompts: Prompts,
    *,
    sampler: Sampler,
    decoding: Decoding | None = None,
    lpips: LPIPS | None = None,
    i3d: I3D | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda prompts: None,
) -> PromptThenFree:
    """Roll out and score all prompts, in batches.

    What cannot be measured is listed in `not_measured` with the reason. `advance` is called with the number of prompts
    of each finished batch.
    """
    not_measured = {}
    others = None
    if prompts.actions is None:
        not_measured["action_delta_psnr"] = NO_ACTIONS
    elif len(prompts) < 2:
        not_measured["action_delta_psnr"] = ONE_PROMPT
    else:
        others = others_actions(prompts.actions, prompts.prompt_frames)
    size = min(prompts.video.shape[-2:])
    if size < SSIM_WINDOW:
        not_measured["ssim"] = f"it needs frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {size}."
    if lpips is not None and size < MIN_SIZE:
        not_measured["lpips"] = f"it needs frames of at least {MIN_SIZE} x {MIN_SIZE} pixels, got {size}."
        lpips = None
    scores = FutureScores(lpips, i3d)
    for rows, batch in prompts.batches(batch_size):
        other = None if others is None else others[rows.start : rows.stop]
        scores.add(imagine(model, adapter, batch, others=other, sampler=sampler, decoding=decoding, indices=rows))
        advance(len(batch))
    distance = None
    if i3d is not None and len(prompts) < fvd.MIN_CLIPS:
        not_measured["fvd"] = f"it needs at least {fvd.MIN_CLIPS} prompts; raise measures.prompts or record more."
    elif i3d is not None:
        distance = scores.fvd.compute()
    return PromptThenFree(scores=scores.all(), effect=scores.action_effect(), fvd=distance, not_measured=not_measured)
