"""What all training runs share in their config."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from vidtok_plugin.config import check_keywords

# Keys of the Trainer that a run sets itself, and what to use instead.
RESERVED = {
    "accumulate_grad_batches": "data.batch_size",  # with it Lightning's global_step would not count batches
    "gradient_clip_val": "optimizer.gradient_clip",
    "gradient_clip_algorithm": "optimizer.gradient_clip",
    "logger": "loggers",
    "callbacks": "the Python interface",
    "default_root_dir": "output",
    "enable_checkpointing": "checkpoint_every",
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all training runs share."""

    output: Path  # of checkpoints, logs, the resolved config, and the model at the end
    seed: int = 0
    checkpoint_every: int = 500  # batches
    loggers: tuple[Literal["csv", "tensorboard"], ...] = ("csv", "tensorboard")
    trainer: dict[str, Any] = field(default_factory=dict)  # keywords of Lightning's Trainer

    def __post_init__(self) -> None:
        for key in self.trainer:
            if key in RESERVED:
                raise ValueError(f"{type(self).__name__}: trainer.{key} is set by {RESERVED[key]}; use that.")
        check_keywords("trainer", self.trainer, pl.Trainer)
        if self.checkpoint_every < 1:
            raise ValueError(f"{type(self).__name__}: checkpoint_every must be 1 or more, got {self.checkpoint_every}.")

    @property
    def last_checkpoint(self) -> Path:
        return self.output / "checkpoints" / "last.ckpt"
