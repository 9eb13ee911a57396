"""Log steps: every `trainer.log_every_n_steps`th batch, counted over the whole run including resumptions."""

import lightning.pytorch as pl


def before_log_step(trainer: pl.Trainer) -> bool:
    """Whether the batch that is about to start is logged; for `on_train_batch_start`."""
    return _is_log_step(trainer, trainer.global_step + 1)


def at_log_step(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just ended is logged; for `on_train_batch_end`."""
    return _is_log_step(trainer, trainer.global_step)


def _is_log_step(trainer: pl.Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and step % every == 0  # 0: no logging
