"""When codebook or discriminator collapse: one warning, and a metric."""

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsage, CodebookUsageLog
from vidtok_plugin.training.log_steps import at_log_step

logger = logging.getLogger(__name__)

RELEASE = 2.0  # what has collapsed must clear its bound by this factor, so that what wavers there is told of once
FEWEST_CODES = 2.0  # a perplexity under this is a collapse, however small the codebook
JUDGED = ("hinge", "logits_real", "logits_fake")  # what the module logs of the discriminator


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """From when on codebook and discriminator count as collapsed.

    The bounds are rules of thumb, chosen wide: what they find is broken, and what they don't need not be well.
    """

    window: int = 100  # batches that are judged together, and that `train/codebook_*` is of
    grace: int = 1000  # batches before the first verdict: on codes from the start, on the discriminator from disc_start
    codebook_share: float = 0.01  # of the highest perplexity that is possible
    won_hinge: float = 0.01  # the discriminator tells all apart if its mean hinge loss is under this
    lost_margin: float = 0.05  # and can't tell if the mean logits of real and reconstructed video are closer than this

    def __post_init__(self) -> None:
        if self.window < 1 or self.grace < 0:
            raise ValueError(
                f"CollapseConfig: window must be 1 or more and grace not negative, got {self.window} and {self.grace}."
            )
        for name, most in (("codebook_share", 1.0), ("won_hinge", 1.0), ("lost_margin", 2.0)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(
                    f"CollapseConfig: {name} must be in [0, {most:g}), got {getattr(self, name)}; 0 never warns."
                )

    def min_perplexity(self, use: CodebookUsage) -> float:
        """The perplexity that a codebook with this use must reach.

        Example:
            >>> use = CodebookUsage(usage=1.0, perplexity=9.0, codes=32768, tokens=10**6, batches=100)
            >>> CollapseConfig().min_perplexity(use)
            327.68
        """
        if self.codebook_share == 0:
            return 0.0
        possible = min(use.codes, use.tokens)
        return min(max(FEWEST_CODES, self.codebook_share * possible), possible)


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What has collapsed, and a sentence on it."""

    figures: str
    remedy: str


class CollapseWatch(pl.Callback):
    """Warns once when codebook or discriminator collapse, and logs `train/codebook_collapsed` and
    `train/discriminator_collapsed`, 0 or 1, as soon as there is a verdict.

    The codebook has collapsed when the perplexity of a window's codes is under a share of what it could be, which is
    the number of codes, or of tokens if those are fewer. One code for all is a perplexity of 1. A clip that hardly
    changes has few codes without any fault, hence the low share.

    The discriminator has collapsed in one of two ways, by the means over a window:

    - It has won: its hinge loss is about 0, so nearly all logits are beyond the margins, where the hinge has no
      gradient. It learns no more. The tokenizer does not stop for that: its loss is softplus, which pushes hardest
      just then, and the adaptive weight makes that push as long as the reconstruction's gradient, right or wrong. So
      the tokenizer is pushed at full strength by a judge that no longer learns from what it makes.
    - It has lost: its mean logits of real and reconstructed video are (nearly) equal, so that its hinge loss is about 1
      or more (it is convex: never under 1 less half their difference). The push then goes nowhere in particular. The
      same figures are those of a perfect tokenizer, from which this can't tell it: see the PSNR.

    Both are judged on whole windows, after a grace: at first all tokens may well have one code, and the discriminator
    have an easy time, since the tokenizer never had to do with it.
    """

    def __init__(self, cfg: CollapseConfig, codebook: CodebookUsageLog, *, disc_start: int) -> None:
        """codebook: it comes before this one among the Trainer's callbacks, and counts `cfg.window` batches."""
        if codebook.batches.maxlen != cfg.window:
            raise ValueError(
                f"CollapseWatch: window must be that of CodebookUse, {codebook.batches.maxlen}, got {cfg.window}."
            )
        self.cfg, self.codebook, self.disc_start = cfg, codebook, disc_start
        self.judged: deque[Tensor] = deque(maxlen=cfg.window)  # (3,): JUDGED of each batch, over all processes
        self.collapsed: dict[str, bool] = {}

    def on_train_start(self, *_: Any) -> None:
        self.judged.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step  # batches until now
        metrics = trainer.callback_metrics
        if step > self.disc_start and "train/hinge" in metrics:
            self.judged.append(torch.stack([metrics[f"train/{name}"].detach().clone() for name in JUDGED]))
        if not at_log_step(trainer):
            return
        use = self.codebook.last
        if use is not None and use.batches == self.cfg.window and step >= self.cfg.grace:
            self._tell(trainer, module, "codebook", self._judge_codebook(use))
        if len(self.judged) == self.cfg.window and step >= self.disc_start + self.cfg.grace:
            self._tell(trainer, module, "discriminator", self._judge_discriminator())

    def _judge_codebook(self, use: CodebookUsage) -> Collapse | None:
        least = self.cfg.min_perplexity(use) * self._slack("codebook")
        if use.perplexity >= least:
            return None
        return Collapse(
            figures=f"perplexity {use.perplexity:.4g}, under {least:.4g}, and {use.usage:.3%} of {use.codes} codes "
            f"in {use.tokens} tokens",
            remedy="a lower optimizer.lr, optimizer.gradient_clip, or a higher objective.entropy_weight, which rewards "
            "that all codes are used; with a frozen encoder, see whether weights and data fit each other",
        )

    def _judge_discriminator(self) -> Collapse | None:
        hinge, real, fake = torch.stack(list(self.judged)).mean(0).tolist()
        slack = self._slack("discriminator")
        figures = f"hinge loss {hinge:.3g}, mean logits {real:.3g} of real and {fake:.3g} of reconstructed video"
        if hinge < self.cfg.won_hinge * slack:
            return Collapse(
                figures=f"it tells all apart and learns no more: {figures}",
                remedy="a lower discriminator_optimizer.lr, a higher objective.lecam_weight, or a later "
                "objective.disc_start",
            )
        if abs(real - fake) < self.cfg.lost_margin * slack:
            return Collapse(
                figures=f"it can't tell real from reconstructed: {figures}",
                remedy="a higher discriminator_optimizer.lr or a looser gradient_clip of it; if the PSNR is very high, "
                "there may be nothing left to tell",
            )
        return None

    def _slack(self, what: str) -> float:
        return RELEASE if self.collapsed.get(what, False) else 1.0

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, what: str, found: Collapse | None) -> None:
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
