"""EMA: an exponential moving average of the weights, which leaves frozen weights unchanged."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Averages all parameters over the batches; validation and export use the average.

    The update is a linear interpolation, which keeps a frozen weight bit for bit. PyTorch's own formula,
    `decay * average + (1 - decay) * weight`, rounds. Buffers are copied: some are counts, others already averages.
    """

    def __init__(self, decay: float) -> None:
        def average(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
            torch._foreach_lerp_(averages, weights, 1 - decay)

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Lightning moves the module to the device later; the averages would stay on the CPU.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def export(self, module: pl.LightningModule) -> None:
        """Replaces the module's weights by their averages.

        Lightning does so at the end of training, but not when a finished run is started again.
        """
        self._copy_average_to_current(module)
