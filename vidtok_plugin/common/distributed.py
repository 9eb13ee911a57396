"""Statistics over all processes of a training run."""

from typing import Any

import torch
from torch import Tensor


def num_processes() -> int:
    """How many processes train together; 1 without torch.distributed."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of every process's `x`, the same in all of them; gradients pass through to each process's own.

    After DDP has averaged the processes' gradients, they are those of one process that has the whole batch.
    """
    return x if num_processes() == 1 else _Sum.apply(x) / num_processes()


class _Sum(torch.autograd.Function):
    """The sum over processes. Every process's loss depends on it, and so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
