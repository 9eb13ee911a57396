"""A training run: Lightning's Trainer with checkpoints, logs, seeds and resumption, for tokenizer and world model."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from vidtok_plugin.config import to_yaml
from vidtok_plugin.training.config import RunConfig

logger = logging.getLogger(__name__)


class FinalCheckpoint(pl.Callback):
    """Saves the last batch's state too, from inside the loop.

    After `Trainer.fit` Lightning has counted the epoch as complete: a run that was prolonged from what is saved there
    would skip the rest of it.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.path, self.every = cfg.last_checkpoint, cfg.checkpoint_every

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == trainer.estimated_stepping_batches and step % self.every:
            trainer.save_checkpoint(self.path, weights_only=False)


def build_trainer(cfg: RunConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """The Trainer of a run, on whatever device the machine has unless `cfg.trainer` says otherwise."""
    loggers: list[Logger] = []
    if "csv" in cfg.loggers:
        loggers.append(CSVLogger(cfg.output, name="logs"))
    if "tensorboard" in cfg.loggers:
        loggers.append(TensorBoardLogger(cfg.output, name="tensorboard"))
    checkpoints = ModelCheckpoint(
        dirpath=cfg.last_checkpoint.parent,
        filename="step-{step:08d}",
        auto_insert_metric_name=False,
        every_n_train_steps=cfg.checkpoint_every,
        save_last=True,
        save_on_train_epoch_end=False,
    )
    settings: dict[str, Any] = {"enable_model_summary": False, **cfg.trainer}
    return pl.Trainer(
        **settings,
        logger=loggers,
        callbacks=[checkpoints, FinalCheckpoint(cfg), *callbacks],
        default_root_dir=cfg.output,
    )


def fit(
    cfg: RunConfig, module: pl.LightningModule, data: pl.LightningDataModule, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """Trains, going on from the run's last checkpoint if there is one; writes the resolved config beside it."""
    cfg.output.mkdir(parents=True, exist_ok=True)
    (cfg.output / "config.yaml").write_text(to_yaml(cfg))
    trainer = build_trainer(cfg, callbacks)
    last = cfg.last_checkpoint if cfg.last_checkpoint.exists() else None
    if last is not None:
        logger.info("Going on from %s.", last)
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    return trainer


def validate(cfg: RunConfig, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Scores the run's last checkpoint on its validation data, and prints the measures."""
    if not cfg.last_checkpoint.exists():
        raise FileNotFoundError(f"validate: there is no checkpoint {cfg.last_checkpoint}; run fit first.")
    build_trainer(cfg).validate(module, data, ckpt_path=cfg.last_checkpoint, weights_only=True)
