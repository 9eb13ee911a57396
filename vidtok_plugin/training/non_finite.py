"""NaN or infinite losses and gradients: the error that they raise, and the dump that reproduces them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vidtok_plugin.common.atomic_files import atomic_write

MAX_ORIGINS = 4  # named in a message


class NonFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite."""


def describe(step: int, failed: Sequence[str], origins: Sequence[str], dump: Path | None) -> str:
    """One sentence: which values failed, on which samples, and which file reproduces it."""
    more = f" and {len(origins) - MAX_ORIGINS} more" if len(origins) > MAX_ORIGINS else ""
    saved = "" if dump is None else f"; weights and batch are in {dump} (TrainingModule.reproduce computes it again)"
    return f"NaN or infinite {', '.join(failed)} in batch {step}, on {'; '.join(origins[:MAX_ORIGINS])}{more}{saved}"


def save_dump(path: Path, content: dict[str, Any]) -> None:
    """Writes plain values and CPU tensors, to be read by `torch.load(path, weights_only=True)`."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.save(content, file)
