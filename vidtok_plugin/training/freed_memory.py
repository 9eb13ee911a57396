"""KeepFreedMemory: training on a CPU reuses the memory that each step frees."""

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl

from vidtok_plugin.common.freed_memory import keeping_freed_memory


class KeepFreedMemory(pl.Callback):
    """Applies `keeping_freed_memory` while a run trains on a CPU."""

    def __init__(self) -> None:
        self.keeping = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.device.type == "cpu":
            self.keeping.enter_context(keeping_freed_memory())

    def on_train_end(self, *_: Any) -> None:
        self.keeping.close()

    def on_exception(self, *_: Any) -> None:
        self.keeping.close()
