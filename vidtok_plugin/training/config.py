"""RunConfig: the settings that all training runs share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from vidtok_plugin.common.config import check_keywords
from vidtok_plugin.common.extras import need_extra
from vidtok_plugin.common.field_checks import check_fields

# Trainer keywords that a run sets itself, and the keys to use instead.
RESERVED = {
    "accumulate_grad_batches": "accumulate",  # Lightning's would stop global_step from counting batches
    "gradient_clip_val": "optimizer.gradient_clip",
    "gradient_clip_algorithm": "optimizer.gradient_clip",
    "logger": "loggers",
    "callbacks": "the Python interface",
    "plugins": "the Python interface",
    "default_root_dir": "output",
    "enable_checkpointing": "checkpoint_every",
    "reload_dataloaders_every_n_epochs": "the loader, which draws a new order for each epoch",
}
LOGGER_EXTRAS = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}  # by package
PRECISIONS = (None, "auto", 32, "32", "32-true", "bf16", "bf16-mixed")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that all training runs share.

    A step is a batch: schedules, `trainer.max_steps`, checkpoints and logs count batches, whatever the number of
    optimizers or micro-batches.
    """

    output: Path  # folder of checkpoints, logs, the resolved config and the final model
    seed: int = 0
    checkpoint_every: int = 500  # batches
    keep_checkpoints: int = 2  # the newest; with 2 there is one left to resume from if the last is damaged
    accumulate: int = 1  # gradient-accumulation micro-batches per batch: less memory, the same time
    ema_decay: float | None = None  # decay of averaged weights, such as 0.999; they are validated and saved if set
    non_finite: Literal["stop", "skip"] = "stop"  # at a NaN or infinite loss or gradient: stop the run or skip the step
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "trackio", "mlflow"], ...] = ("csv", "tensorboard")
    curves: bool = True  # plot all logged scalars to pictures/curves.png, at most every two minutes and at the end
    keep_freed_memory: bool = True  # on a CPU, a step reuses the memory that the one before freed: faster, a fifth more
    trainer: dict[str, Any] = field(default_factory=dict)  # keywords of Lightning's Trainer; precision may be auto

    def __post_init__(self) -> None:
        check_fields(self)
        who = type(self).__name__
        for key in self.trainer:
            if key in RESERVED:
                raise ValueError(f"{who}: trainer.{key} is set by {RESERVED[key]}; use that instead.")
        for package in self.loggers:
            if package in LOGGER_EXTRAS:
                need_extra(LOGGER_EXTRAS[package], (package,), f"{who}: loggers: {package}")
        check_keywords("trainer", self.trainer, pl.Trainer)
        if self.trainer.get("precision") not in PRECISIONS:
            raise ValueError(
                f"{who}: trainer.precision must be auto, 32-true or bf16-mixed, got {self.trainer['precision']}: "
                "float16 needs gradient scaling, and bfloat16 weights are too coarse for small steps; use bf16-mixed."
            )
        if self.trainer.get("limit_train_batches", 1) in (0, 0.0):
            raise ValueError(
                f"{who}: trainer.limit_train_batches must be above 0, got "
                f"{self.trainer['limit_train_batches']}: nothing would be trained; run validate to measure only."
            )
        for name in ("checkpoint_every", "keep_checkpoints", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{who}: {name} must be 1 or more, got {getattr(self, name)}.")
        if self.ema_decay is not None and not 0.5 < self.ema_decay < 1:
            raise ValueError(f"{who}: ema_decay must be above 0.5 and below 1, or null, got {self.ema_decay}.")

    def check_micro_batches(self, batch_size: int) -> None:
        """Raises a ValueError unless `batch_size` can be split into `accumulate` micro-batches."""
        if batch_size % self.accumulate:
            raise ValueError(
                f"{type(self).__name__}: data.batch_size must be a multiple of accumulate, {self.accumulate}, got "
                f"{batch_size}; each batch is split into that many micro-batches."
            )

    @property
    def pictures_folder(self) -> Path:
        """The folder of the run's plots and pictures."""
        return self.output / "pictures"

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.output / "checkpoints"
