"""SIGTERM, by which schedulers announce the end: the run saves its state and ends."""

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
    """Saves a checkpoint after the batch in which SIGTERM came, whichever process it came to, and ends all of them.

    It takes the place of Lightning's handler, which talks to the other processes from inside the handler, in the middle
    of whatever they are doing with each other. The process exits with code 0, as under Lightning.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received = self.saved = False

    def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.on_train_start(trainer, module)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)  # Lightning puts the one from before back at the end

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        received = self.received or trainer.received_sigterm
        if trainer.strategy.reduce_boolean_decision(received, all=False):
            self.checkpoints.save(trainer)
            self.saved = True
            if trainer.is_global_zero:
                logger.warning(
                    "SIGTERM: saved after %d batches; the same command goes on from there.", trainer.global_step
                )

    # It ends here and not there, so that the last batch gets its line in the logs.

    def on_train_batch_start(self, *_: Any) -> None:
        self._stop()

    def on_validation_start(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.saved:
            raise SIGTERMException
