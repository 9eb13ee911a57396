"""Which batches get a line in the log: every `trainer.log_every_n_steps`th, counted over the whole run."""

import lightning.pytorch as pl


def before_log_step(trainer: pl.Trainer) -> bool:
    """Whether the batch that starts is one that gets a line; for `on_train_batch_start`."""
    return _gets_line(trainer, trainer.global_step + 1)


def at_log_step(trainer: pl.Trainer) -> bool:
    """Whether the batch that ends is one that gets a line; for `on_train_batch_end`."""
    return _gets_line(trainer, trainer.global_step)


def _gets_line(trainer: pl.Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and step % every == 0  # 0: there is no log
