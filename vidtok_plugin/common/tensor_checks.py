"""Checks of the tensors that users pass: that they are tensors, of integers, within a range."""

from typing import Any

import torch
from torch import Tensor


def check_tensor(value: Any, *, who: str, name: str) -> None:
    """A ValueError for a NumPy array, a list or anything else that is not a tensor."""
    if not isinstance(value, Tensor):
        remedy = "torch.from_numpy(array)" if type(value).__module__ == "numpy" else "torch.stack or torch.tensor"
        raise ValueError(f"{who}: {name} must be a torch.Tensor, got {type(value).__name__}; use {remedy}.")


def as_int64(values: Any, *, who: str, name: str) -> Tensor:
    """Integers of any width, signed or not, as int64; a ValueError for anything else."""
    check_tensor(values, who=who, name=name)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{who}: {name} must be integers, got {values.dtype}.")
    if values.dtype != torch.uint64:
        return values.to(torch.int64)
    converted = values.view(torch.int64)
    if bool((converted < 0).any()):
        place = tuple((converted < 0).nonzero()[0].tolist())
        raise ValueError(f"{who}: {name} must be below 2^63, got {int(converted[place]) + 2**64} at position {place}.")
    return converted


def check_range(values: Tensor, size: int, *, who: str, name: str) -> None:
    """A ValueError that names the first of the integers outside 0 .. size - 1, and its position.

    It waits for the device of the values.
    """
    if values.numel() == 0:
        return
    low, high = values.aminmax()
    if not 0 <= int(low) <= int(high) < size:
        place = tuple(((values < 0) | (values >= size)).nonzero()[0].tolist())
        raise ValueError(f"{who}: {name} must be 0 to {size - 1}, got {int(values[place])} at position {place}.")
