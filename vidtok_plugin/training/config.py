"""What all training runs share in their config."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from vidtok_plugin.common.config import check_keywords

# Keys of the Trainer that a run sets itself, and what to use instead.
RESERVED = {
    "accumulate_grad_batches": "accumulate",  # with it Lightning's global_step would not count batches
    "gradient_clip_val": "optimizer.gradient_clip",
    "gradient_clip_algorithm": "optimizer.gradient_clip",
    "logger": "loggers",
    "callbacks": "the Python interface",
    "plugins": "the Python interface",
    "default_root_dir": "output",
    "enable_checkpointing": "checkpoint_every",
}
PRECISIONS = (None, 32, "32", "32-true", "bf16", "bf16-mixed")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all training runs share.

    A batch is a step: schedules, `trainer.max_steps`, checkpoints and logs count batches, whatever the number of
    optimizers and of parts that a batch is split into.
    """

    output: Path  # of checkpoints, logs, the resolved config, and the model at the end
    seed: int = 0
    checkpoint_every: int = 500  # batches
    keep_checkpoints: int = 2  # the newest ones; with 2, a damaged last one leaves one to go on from
    accumulate: int = 1  # parts that a process's batch is split into, whose gradients add up: less memory, as much time
    ema_decay: float | None = None  # of averaged weights, such as 0.999, which are then validated and saved
    non_finite: Literal["stop", "skip"] = "stop"  # at a loss or gradient that is no number; skip: no step then
    loggers: tuple[Literal["csv", "tensorboard"], ...] = ("csv", "tensorboard")
    curves: bool = True  # draw all that is logged to pictures/curves.png, every two minutes at most, and at the end
    trainer: dict[str, Any] = field(default_factory=dict)  # keywords of Lightning's Trainer

    def __post_init__(self) -> None:
        who = type(self).__name__
        for key in self.trainer:
            if key in RESERVED:
                raise ValueError(f"{who}: trainer.{key} is set by {RESERVED[key]}; use that.")
        check_keywords("trainer", self.trainer, pl.Trainer)
        if self.trainer.get("precision") not in PRECISIONS:
            raise ValueError(
                f"{who}: trainer.precision must be 32-true or bf16-mixed, got {self.trainer['precision']}: float16 "
                "needs its gradients scaled, and bfloat16 weights are too coarse for small steps; take bf16-mixed."
            )
        for name in ("checkpoint_every", "keep_checkpoints", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{who}: {name} must be 1 or more, got {getattr(self, name)}.")
        if self.ema_decay is not None and not 0.5 < self.ema_decay < 1:
            raise ValueError(f"{who}: ema_decay must be above 0.5 and below 1, or null, got {self.ema_decay}.")

    def check_micro_batches(self, batch_size: int) -> None:
        """A ValueError unless a batch of `batch_size` can be split into `accumulate` parts."""
        if batch_size % self.accumulate:
            raise ValueError(
                f"{type(self).__name__}: data.batch_size must be a multiple of accumulate, {self.accumulate}, got "
                f"{batch_size}; the batch is split into so many parts."
            )

    @property
    def pictures_folder(self) -> Path:
        """The folder of the pictures that show how the run goes."""
        return self.output / "pictures"

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.output / "checkpoints"
