"""ObjectiveConfig: the terms of the training objective, their weights and their schedules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.metrics.lpips import MIN_SIZE as LPIPS_MIN_SIZE
from vidtok_plugin.tokenizer.objective.discriminators import MIN_SIZE as DISCRIMINATOR_MIN_SIZE


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and schedules of the objective's terms; the defaults are the published ones.

    The reconstruction error (L1, L2, and each frame's LPIPS added at each of its elements) is summed over all elements
    and divided by the number of frames. Schedules count batches. The published `disc_start` of 20,001 counted each
    batch twice, once per optimizer, and took effect at batch 10,001.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0  # the published objective has no such term
    perceptual: Literal["lpips", "none"] = "lpips"
    perceptual_weight: float = 1.0
    lpips_vgg: Path | None = None  # VGG16 weights, or a published VidTok checkpoint; downloaded by default
    learn_logvar: bool = True  # learned log scale of the reconstruction error, starting at 0
    discriminator: Literal["3d", "2d", "none"] = "3d"  # judges clips, frames, or nothing
    disc_weight: float = 0.2  # times the adaptive weight
    disc_start: int = 20_001  # batches before the discriminator starts
    lecam_weight: float = 0.005
    lecam_decay: float = 0.999
    entropy_weight: float = 0.1
    entropy_annealing_factor: float = 3.0  # the entropy weight starts at this multiple of itself ...
    entropy_annealing_steps: int = 2000  # ... and falls linearly to itself over these batches
    commitment_weight: float = 0.25
    kl_weight: float = 1e-6
    still_weight: float = 0.0  # of latents that change where the video is still; not in the published objective

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.l1_weight, self.l2_weight) < 0 or self.l1_weight + self.l2_weight == 0:
            raise ValueError(
                "ObjectiveConfig: l1_weight and l2_weight must not be negative, and one above 0, "
                f"got {self.l1_weight} and {self.l2_weight}."
            )
        for name, choice in (("perceptual", "perceptual"), ("disc", "discriminator")):
            if getattr(self, f"{name}_weight") <= 0:
                raise ValueError(
                    f"ObjectiveConfig: {name}_weight must be above 0, got {getattr(self, f'{name}_weight')}; "
                    f"{choice}=none leaves it out."
                )
        not_negative = ("disc_start", "lecam_weight", "entropy_weight", "entropy_annealing_factor")
        for name in (*not_negative, "entropy_annealing_steps", "commitment_weight", "kl_weight", "still_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"ObjectiveConfig: {name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"ObjectiveConfig: lecam_decay must be in [0, 1), got {self.lecam_decay}.")

    def regularizer_weight(self, name: str, step: int) -> float:
        """The weight of a regularizer's term at a step (from 0)."""
        if name != "entropy":
            return {"commitment": self.commitment_weight, "kl": self.kl_weight}[name]
        remaining = 1 - min(1.0, step / self.entropy_annealing_steps) if self.entropy_annealing_steps else 0.0
        return self.entropy_weight * (1 + (self.entropy_annealing_factor - 1) * remaining)

    @property
    def min_size(self) -> int:
        """The minimum height and width of frames, in pixels, for LPIPS and the discriminator."""
        discriminator = 1 if self.discriminator == "none" else DISCRIMINATOR_MIN_SIZE[self.discriminator]
        return max(discriminator, LPIPS_MIN_SIZE if self.perceptual == "lpips" else 1)

    def discriminating(self, step: int) -> bool:
        """Whether the discriminator is active at a step (from 0)."""
        return self.discriminator != "none" and step >= self.disc_start
