"""What the objective is made of: its terms, their weights and their schedules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidtok_plugin.metrics import lpips
from vidtok_plugin.tokenizer.objective import discriminators


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the objective's terms and when they start; the defaults are the published.

    The reconstruction error (L1, L2, and each frame's LPIPS at all of its elements) is summed over the elements and
    divided by the number of frames. Schedules count batches: the published `disc_start` of 20,001 counted each batch
    twice, once for each of two optimizers, and so fell at batch 10,001.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0  # the published objective has no such term
    perceptual: Literal["lpips", "none"] = "lpips"
    perceptual_weight: float = 1.0
    lpips_vgg: Path | None = None  # file of VGG16's weights, or a published VidTok checkpoint; by default downloaded
    learn_logvar: bool = True  # the log of the reconstruction error's scale, from 0
    discriminator: Literal["3d", "2d", "none"] = "3d"  # judges clips, frames or nothing
    disc_weight: float = 0.2  # times the adaptive weight, which makes the gradients at the last layer equally long
    disc_start: int = 20_001  # batches without it
    lecam_weight: float = 0.005
    lecam_decay: float = 0.999
    entropy_weight: float = 0.1
    entropy_annealing_factor: float = 3.0  # the entropy's weight falls from so many times its own ...
    entropy_annealing_steps: int = 2000  # ... over the first so many batches
    commitment_weight: float = 0.25
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
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
        for name in (*not_negative, "entropy_annealing_steps", "commitment_weight", "kl_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"ObjectiveConfig: {name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"ObjectiveConfig: lecam_decay must be in [0, 1), got {self.lecam_decay}.")

    def regularizer_weight(self, name: str, step: int) -> float:
        """Weight of a regularizer's term at a step (from 0)."""
        if name != "entropy":
            return {"commitment": self.commitment_weight, "kl": self.kl_weight}[name]
        share = 1 - min(1.0, step / self.entropy_annealing_steps) if self.entropy_annealing_steps else 0.0
        return self.entropy_weight * (1 + (self.entropy_annealing_factor - 1) * share)

    @property
    def min_size(self) -> int:
        """Pixels a side that frames must have for LPIPS and the discriminator."""
        judged = 1 if self.discriminator == "none" else discriminators.MIN_SIZE[self.discriminator]
        return max(judged, lpips.MIN_SIZE if self.perceptual == "lpips" else 1)

    def discriminating(self, step: int) -> bool:
        """Whether the discriminator takes part at a step (from 0)."""
        return self.discriminator != "none" and step >= self.disc_start
