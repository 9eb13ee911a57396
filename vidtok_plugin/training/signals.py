"""SIGTERM handling: when a scheduler announces the end of a job, the run saves a checkpoint and exits."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vidtok_plugin.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class StopAtSigterm(pl.Callback):
    """Saves a checkpoint after the batch in which any process received SIGTERM, and ends the run in all processes.

    In a validation, before which a checkpoint is saved, one process ends after the validation's batch. Several go on
    until the next training batch, since they may validate different numbers of batches.

    Replaces Lightning's handler, which communicates with the other processes from inside the signal handler, possibly
    in the middle of another collective. The process exits with code 0, as under Lightning.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = self.saved = False

    def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.on_train_start(trainer, module)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._set_received)  # Lightning restores the previous handler

    def _set_received(self, signum: int, frame: FrameType | None) -> None:
        self.received = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        received = self.received or trainer.received_sigterm
        if trainer.strategy.reduce_boolean_decision(received, all=False):
            self._save(trainer)

    # The run stops at the next hook, so that the last batch is logged first.

    def on_train_batch_start(self, *_: Any) -> None:
        self._stop()

    def on_validation_start(self, *_: Any) -> None:
        self._stop()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and trainer.world_size == 1 and (self.received or trainer.received_sigterm):
            self._save(trainer)
            self._stop()

    def _save(self, trainer: pl.Trainer) -> None:
        self.checkpoints.save(trainer)  # in a validation, there is one of this batch
        self.saved = True
        if trainer.is_global_zero:
            logger.warning("SIGTERM: saved after %d batches; the same command resumes there.", trainer.global_step)

    def _stop(self) -> None:
        if self.saved:
            raise SIGTERMException
