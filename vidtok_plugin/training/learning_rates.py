"""The learning rates that a batch is trained with, in the log."""

from typing import Any

import lightning.pytorch as pl

from vidtok_plugin.training.log_steps import before_log_step
from vidtok_plugin.training.module import TrainingModule


class LearningRates(pl.Callback):
    """Logs `train/lr`, and `train/lr_muon` or `train/lr_NAME` where there are Muon or further optimizers.

    Not Lightning's LearningRateMonitor: it names rates by the optimizer's class and the group's number, and refuses to
    run without a logger.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if not before_log_step(trainer):
            return
        names = module.optimizer_names() if isinstance(module, TrainingModule) else []
        rates: dict[str, float] = {}
        for index, optimizer in enumerate(trainer.optimizers):
            name = "lr" if index == 0 else f"lr_{names[index] if index < len(names) else index}"
            for group in optimizer.param_groups:
                rates.setdefault(f"{name}_muon" if group.get("muon") else name, group["lr"])
        module.log_dict({f"train/{name}": rate for name, rate in rates.items()})
