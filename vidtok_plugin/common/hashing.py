"""SHA-256 hashes of weights, settings and files, to detect changes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def hash_weights(tensors: Mapping[str, Tensor], *settings: str) -> str:
    """SHA-256 of settings and named tensors; the order of the tensors does not matter."""
    digest = hashlib.sha256("".join(settings).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_files(*paths: Path) -> str:
    """SHA-256 of the concatenated contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
