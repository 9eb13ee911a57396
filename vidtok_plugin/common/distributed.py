"""Means over all processes of a training run."""

from typing import Any

import torch
from torch import Tensor


def num_processes() -> int:
    """The world size; 1 without torch.distributed."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, with gradients to each process's own `x`.

    After DDP has averaged the gradients, they equal those of a single process with the whole batch.
    """
    return x if num_processes() == 1 else _Sum.apply(x) / num_processes()


class _Sum(torch.autograd.Function):
    """The sum over processes. Every process's loss depends on it, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
