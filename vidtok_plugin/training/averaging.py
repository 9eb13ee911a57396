"""Averaged weights: Lightning's weight averaging, for weights of which some are frozen."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """The exponential moving average of all parameters over the batches; validation and export use it.

    The average is taken by interpolation, which leaves a frozen weight as it is to the last bit; PyTorch's own
    formula, `decay * average + (1 - decay) * weight`, rounds. Buffers are copied, since some are counts, and some
    averages themselves.
    """

    def __init__(self, decay: float) -> None:
        def average(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
            torch._foreach_lerp_(averages, weights, 1 - decay)

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the module is not there yet, and averages would stay on the CPU
        super().setup(trainer, pl_module, stage)

    def export(self, module: pl.LightningModule) -> None:
        """Puts the averages in the weights' place, as the end of training does; but a finished run that is started
        again has no such end."""
        self._copy_average_to_current(module)
