"""The optimizer and the learning rate schedule of a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.training.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Adam with `weight_decay` 0), with a learning rate that warms up, stays constant, and decays at the end.

    Because the rate is constant in between, a run can be extended from a checkpoint taken before the decay.
    """

    lr: float = 1e-3
    muon_lr: float | None = None  # if set, Muon trains matrices and kernels at this rate, and AdamW the rest
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0  # for matrices and kernels only
    warmup_steps: int = 0
    decay_steps: int = 0  # the last batches of the run
    decay_shape: Literal["linear", "cosine"] = "linear"  # cosine: flat at both ends
    final_rate: float = 0.0  # fraction of lr at the end of the decay
    gradient_clip: float | None = None  # maximum global norm of the gradients

    def __post_init__(self) -> None:
        check_fields(self)
        if self.muon_lr is not None and self.muon_lr <= 0:
            raise ValueError(f"OptimizerConfig: muon_lr must be above 0 or null, got {self.muon_lr}.")
        if self.lr <= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"OptimizerConfig: lr must be above 0 and betas in [0, 1), got {self.lr} and {self.betas}."
            )
        if min(self.weight_decay, self.warmup_steps, self.decay_steps) < 0:
            raise ValueError("OptimizerConfig: weight_decay, warmup_steps and decay_steps must not be negative.")
        if self.decay_shape not in ("linear", "cosine"):
            raise ValueError(f"OptimizerConfig: decay_shape must be linear or cosine, got {self.decay_shape!r}.")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"OptimizerConfig: final_rate must be a fraction of lr in 0..1, got {self.final_rate}.")
        if self.decay_steps == 0 and (self.decay_shape != "linear" or self.final_rate > 0):
            raise ValueError(
                f"OptimizerConfig: decay_shape={self.decay_shape} and final_rate={self.final_rate} need a decay; set "
                "decay_steps above 0 or leave them out."
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"OptimizerConfig: gradient_clip must be above 0 or null, got {self.gradient_clip}.")

    def rate(self, step: int, max_steps: int) -> float:
        """Fraction of `lr` at a step (from 0) of a run of `max_steps` batches; -1 for a run without a limit.

        Example:
            >>> [OptimizerConfig(warmup_steps=2, decay_steps=4).rate(step, 8) for step in (0, 1, 4, 6, 8)]
            [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        up = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        down = min(1.0, (max_steps - step) / self.decay_steps) if self.decay_steps and max_steps > 0 else 1.0
        down = max(0.0, down)
        if self.decay_shape == "cosine":
            down = 0.5 - 0.5 * cos(pi * down)
        return up * (self.final_rate + (1 - self.final_rate) * down)


def configure_optimizers(
    parameters: Iterable[nn.Parameter],
    cfg: OptimizerConfig,
    max_steps: float,
    embeddings: Iterable[nn.Parameter] = (),
    *,
    bfloat16: bool = False,
) -> OptimizerLRSchedulerConfig:
    """The optimizer and its schedule per batch, as a Lightning module's `configure_optimizers` returns them.

    max_steps: the Trainer's `estimated_stepping_batches`; infinite for a run with only a time limit.
    embeddings: parameters among `parameters` that are lookup tables, not linear maps. Muon does not fit them.
    bfloat16: whether Muon may calculate in bfloat16.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    tables = {id(parameter) for parameter in embeddings}
    muon = {} if cfg.muon_lr is None else {"muon": True, "lr": cfg.muon_lr}
    kernels = [p for p in trained if p.ndim > 1 and id(p) not in tables]
    lookups = [p for p in trained if p.ndim > 1 and id(p) in tables]
    groups = [
        {"params": kernels, "weight_decay": cfg.weight_decay, **muon},
        {"params": lookups, "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if cfg.muon_lr is not None:
        optimizer = Muon(groups, lr=cfg.lr, betas=cfg.betas, bfloat16=bfloat16)
    else:
        optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    end = -1 if math.isinf(max_steps) else int(max_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cfg.rate(step, end))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
