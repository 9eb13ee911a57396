"""The progress bar of training: Lightning's, on stderr, to the batches that will really be trained."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class BatchBar(RichProgressBar):
    """Ends where `max_steps` ends the run, also in a run that was resumed within an epoch."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, total=batches_of_epoch(trainer, batch_idx + 1))


def batches_of_epoch(trainer: pl.Trainer, done: int) -> float:
    """The batches that the current epoch will have, of which `done` are done; a step is a batch."""
    batches = float(trainer.num_training_batches)
    return batches if trainer.max_steps < 0 else min(batches, done + trainer.max_steps - trainer.global_step)
