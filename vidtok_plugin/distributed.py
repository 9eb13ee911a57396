"""Statistics over all processes of a training run."""

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def num_processes() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if _initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of every process's `x`, the same in all of them; gradients pass through to each process's own.

    After DDP has averaged the processes' gradients, they are those of one process that has the whole batch.
    """
    if num_processes() == 1:
        return x
    return all_reduce(x.contiguous()) / num_processes()


def _initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
