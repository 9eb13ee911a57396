"""Collapse of the codebook or the discriminator during training: one warning each time, and a metric."""

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsage, CodebookUsageMonitor
from vidtok_plugin.training.log_steps import at_log_step

logger = logging.getLogger(__name__)

HYSTERESIS = 2.0  # recovery must clear the bound by this factor
MIN_PERPLEXITY = 2.0  # below it a codebook of any size has collapsed
DISCRIMINATOR_METRICS = ("hinge", "logits_real", "logits_fake")  # as the module logs them


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """The bounds at which codebook and discriminator count as collapsed; a bound of 0 never warns.

    The bounds are loose: a reported run is broken, but a run that passes may still be unhealthy.
    """

    window: int = 100  # batches that are judged together, and that `train/codebook_*` covers
    grace: int = 1000  # batches before the first verdict, counted for the discriminator from disc_start
    codebook_share: float = 0.01  # minimum perplexity, as a fraction of the highest possible
    won_hinge: float = 0.01  # mean hinge loss below which the discriminator has won
    lost_margin: float = 0.05  # difference of the mean logits of real and fake below which it has lost

    def __post_init__(self) -> None:
        check_fields(self)
        if self.window < 1 or self.grace < 0:
            raise ValueError(
                f"CollapseConfig: window must be 1 or more and grace not negative, got {self.window} and {self.grace}."
            )
        for name, limit in (("codebook_share", 1.0), ("won_hinge", 1.0), ("lost_margin", 2.0)):
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(
                    f"CollapseConfig: {name} must be in [0, {limit:g}), got {getattr(self, name)}; 0 never warns."
                )

    def min_perplexity(self, usage: CodebookUsage) -> float:
        """The perplexity below which a codebook has collapsed.

        Example:
            >>> usage = CodebookUsage(usage=1.0, perplexity=9.0, codes=32768, tokens=10**6, batches=100)
            >>> CollapseConfig().min_perplexity(usage)
            327.68
        """
        if self.codebook_share == 0:
            return 0.0
        possible = min(usage.codes, usage.tokens)
        return min(max(MIN_PERPLEXITY, self.codebook_share * possible), possible)


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """The measurements that show a collapse, and the remedy, as a warning quotes them."""

    figures: str
    remedy: str


class CollapseMonitor(pl.Callback):
    """Warns when the codebook or the discriminator collapses.

    It warns once per collapse, and logs `train/codebook_collapsed` and `train/discriminator_collapsed`, 0 or 1.

    The codebook has collapsed when the perplexity of the codes in a window is below a fraction of the highest possible
    perplexity, which is the number of codes, or of tokens if there are fewer. One code for all tokens is a perplexity
    of 1. The fraction is small because clips that hardly change need few codes.

    The discriminator has collapsed in one of two ways, judged by means over a window:

    - It has won. Its hinge loss is about 0: nearly all logits are beyond the margins, where the hinge has no gradient,
      and it stops learning. The tokenizer is still pushed at full strength, by a discriminator that no longer adapts to
      it: its softplus loss is steepest there, and the adaptive weight scales the gradient to the reconstruction's.
    - It has lost. Its mean logits of real and reconstructed video are nearly equal, so that its hinge loss is about 1
      or more (by convexity, at least 1 minus half the difference). The adversarial gradient then has no meaningful
      direction. A perfect tokenizer gives the same values; look at the PSNR.

    Verdicts need a whole window and start after a grace period: at first all tokens may well share a code, and a new
    discriminator has an easy task.
    """

    def __init__(self, cfg: CollapseConfig, codebook: CodebookUsageMonitor, *, disc_start: int) -> None:
        """codebook: a callback with the same window, which must come before this one in the Trainer's list."""
        if codebook.batches.maxlen != cfg.window:
            raise ValueError(
                f"CollapseMonitor: window must equal that of CodebookUsageMonitor, {codebook.batches.maxlen}, "
                f"got {cfg.window}."
            )
        self.cfg, self.codebook, self.disc_start = cfg, codebook, disc_start
        self.judged: deque[Tensor] = deque(maxlen=cfg.window)  # (3,): DISCRIMINATOR_METRICS of each batch
        self.collapsed: dict[str, bool] = {}

    def on_train_start(self, *_: Any) -> None:
        self.judged.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step  # batches so far
        metrics = trainer.callback_metrics
        if step > self.disc_start and "train/hinge" in metrics:
            values = [metrics[f"train/{name}"].detach().clone() for name in DISCRIMINATOR_METRICS]
            self.judged.append(torch.stack(values))
        if not at_log_step(trainer):
            return
        usage = self.codebook.last
        if usage is not None and usage.batches == self.cfg.window and step >= self.cfg.grace:
            self._report(trainer, module, "codebook", self._judge_codebook(usage))
        if len(self.judged) == self.cfg.window and step >= self.disc_start + self.cfg.grace:
            self._report(trainer, module, "discriminator", self._judge_discriminator())

    def _judge_codebook(self, usage: CodebookUsage) -> Collapse | None:
        bound = self.cfg.min_perplexity(usage) * self._hysteresis("codebook")
        if usage.perplexity >= bound:
            return None
        return Collapse(
            figures=f"perplexity {usage.perplexity:.4g}, below {bound:.4g}, with {usage.usage:.3%} of {usage.codes} "
            f"codes used in {usage.tokens} tokens",
            remedy="a lower optimizer.lr, optimizer.gradient_clip, or a higher objective.entropy_weight, which rewards "
            "use of all codes; with a frozen encoder, check that weights and data fit each other",
        )

    def _judge_discriminator(self) -> Collapse | None:
        hinge, real, fake = torch.stack(list(self.judged)).mean(0).tolist()
        hysteresis = self._hysteresis("discriminator")
        figures = f"hinge loss {hinge:.3g}, mean logits {real:.3g} of real and {fake:.3g} of reconstructed video"
        if hinge < self.cfg.won_hinge * hysteresis:
            return Collapse(
                figures=f"it separates real from reconstructed perfectly and stops learning: {figures}",
                remedy="a lower discriminator_optimizer.lr, a higher objective.lecam_weight, or a later "
                "objective.disc_start",
            )
        if abs(real - fake) < self.cfg.lost_margin * hysteresis:
            return Collapse(
                figures=f"it cannot distinguish real from reconstructed: {figures}",
                remedy="a higher discriminator_optimizer.lr or a looser gradient_clip for it; with a very high PSNR "
                "there may be nothing left to distinguish",
            )
        return None

    def _hysteresis(self, what: str) -> float:
        return HYSTERESIS if self.collapsed.get(what, False) else 1.0

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, what: str, found: Collapse | None) -> None:
        module.log(f"train/{what}_collapsed", float(found is not None))
        before, self.collapsed[what] = self.collapsed.get(what, False), found is not None
        if not trainer.is_global_zero or before == self.collapsed[what]:
            return
        if found is None:
            logger.info("the %s has recovered from its collapse, after %d batches.", what, trainer.global_step)
        else:
            logger.warning(
                "the %s has collapsed: after %d batches, over the last %d: %s. Try %s.",
                what,
                trainer.global_step,
                self.cfg.window,
                found.figures,
                found.remedy,
            )
