"""SHA-256 hashes of weights and settings, to detect changes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def hash_weights(tensors: Mapping[str, Tensor], *settings: str) -> str:
    """SHA-256 of settings and named tensors, with their shapes and dtypes; the order of the tensors does not matter.

    Example:
        >>> hash_weights({"w": torch.zeros(2, 3)}) == hash_weights({"w": torch.zeros(3, 2)})
        False
    """
    kinds = [f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}" for name in sorted(tensors)]
    return hash_values(tensors, *settings, *kinds)


def hash_values(tensors: Mapping[str, Tensor], *settings: str) -> str:
    """SHA-256 of settings and the values of named tensors, whose shapes follow from the settings.

    Stores and worlds keep such hashes of an architecture and its weights, so it must not change.
    """
    digest = hashlib.sha256("".join(settings).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """A buffer of a tensor's values in memory order of a contiguous tensor; on the CPU it is not a copy."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
