"""The optimizer and the learning rate's schedule, for tokenizer and world model alike."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (or Adam, with `weight_decay` 0), warmed up, held, and brought to zero over the last `decay_steps`.

    Since the rate is held in between, a run can be prolonged from a checkpoint taken before the decay.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0  # of matrices and kernels only
    warmup_steps: int = 0
    decay_steps: int = 0
    gradient_clip: float | None = None  # largest norm of all gradients together

    def __post_init__(self) -> None:
        if self.lr <= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"OptimizerConfig: lr must be above 0 and betas in [0, 1), got {self.lr} and {self.betas}."
            )
        if min(self.weight_decay, self.warmup_steps, self.decay_steps) < 0:
            raise ValueError("OptimizerConfig: weight_decay, warmup_steps and decay_steps must not be negative.")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(
                f"OptimizerConfig: gradient_clip must be above 0 or null, got {self.gradient_clip}."
            )

    def rate(self, step: int, max_steps: int) -> float:
        """Share of `lr` at a step (from 0) of a run of `max_steps`; -1 for a run without an end.

        Example:
            >>> [OptimizerConfig(warmup_steps=2, decay_steps=4).rate(step, 8) for step in (0, 1, 4, 6, 8)]
            [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        up = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        down = min(1.0, (max_steps - step) / self.decay_steps) if self.decay_steps and max_steps > 0 else 1.0
        return up * max(0.0, down)


def configure_optimizers(
    parameters: Iterable[nn.Parameter], cfg: OptimizerConfig, max_steps: int
) -> OptimizerLRSchedulerConfig:
    """What a Lightning module's `configure_optimizers` returns: the optimizer, and its schedule by batches."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cfg.rate(step, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
