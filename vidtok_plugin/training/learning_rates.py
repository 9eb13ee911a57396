"""LearningRates: logs the learning rates that each batch is trained with."""

from typing import Any

import lightning.pytorch as pl

from vidtok_plugin.training.log_steps import before_log_step
from vidtok_plugin.training.module import TrainingModule


class LearningRates(pl.Callback):
    """Logs `train/lr`, `train/lr_muon` with Muon, and `train/lr_NAME` for each further optimizer.

    Lightning's LearningRateMonitor names rates by optimizer class and group number, and needs a logger.
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
