"""The optimizer and the learning rate's schedule, for tokenizer and world model alike."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from vidtok_plugin.training.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (or Adam, with `weight_decay` 0), warmed up, held, and brought down over the last `decay_steps`.

    Since the rate is held in between, a run can be prolonged from a checkpoint taken before the decay.
    """

    lr: float = 1e-3
    muon_lr: float | None = None  # if given, matrices and kernels are trained by Muon at this rate, the rest by AdamW
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0  # of matrices and kernels only
    warmup_steps: int = 0
    decay_steps: int = 0
    decay_shape: Literal["linear", "cosine"] = "linear"  # cosine: slow at both ends, half way at the middle
    final_rate: float = 0.0  # share of the rate that is left at the end of the decay
    gradient_clip: float | None = None  # largest norm of all gradients together

    def __post_init__(self) -> None:
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
            raise ValueError(f"OptimizerConfig: final_rate must be a share in 0..1 of lr, got {self.final_rate}.")
        if self.decay_steps == 0 and (self.decay_shape != "linear" or self.final_rate > 0):
            raise ValueError(
                f"OptimizerConfig: decay_shape={self.decay_shape} and final_rate={self.final_rate} need a decay; set "
                "decay_steps above 0 or leave them out."
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"OptimizerConfig: gradient_clip must be above 0 or null, got {self.gradient_clip}.")

    def rate(self, step: int, max_steps: int) -> float:
        """Share of `lr` at a step (from 0) of a run of `max_steps`; -1 for a run without an end.

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
    tables: Iterable[nn.Parameter] = (),
) -> OptimizerLRSchedulerConfig:
    """What a Lightning module's `configure_optimizers` returns: the optimizer, and its schedule by batches.

    `max_steps` is the Trainer's `estimated_stepping_batches`, infinite for a run that only time ends. `tables` are
    matrices that hold a vector for each of many things, as embeddings do, and map nothing: Muon is not for them.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    vectors = {id(parameter) for parameter in tables}
    kernels = [p for p in trained if p.ndim > 1 and id(p) not in vectors]
    rest = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim > 1 and id(p) in vectors], "weight_decay": cfg.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if cfg.muon_lr is not None:
        groups[0] |= {"muon": True, "lr": cfg.muon_lr}
        optimizer = Muon([group for group in groups if group["params"]], lr=cfg.lr, betas=cfg.betas)
    else:
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    end = -1 if math.isinf(max_steps) else int(max_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cfg.rate(step, end))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
