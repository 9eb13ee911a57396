"""Averaged weights: Lightning's weight averaging, for weights of which some are frozen."""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

RAW_WEIGHTS = "current_model_state"  # where a checkpoint has them; `state_dict` then has the averages


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
