"""A loss that is no number: what is kept to find out why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHOWN = 4  # origins named in a message


class NonFiniteError(ValueError):
    """A loss or a gradient is infinite or not a number."""


def describe(step: int, failed: Sequence[str], origins: Sequence[str], dump: Path | None) -> str:
    """One sentence on what failed, on which samples, and where it can be reproduced from."""
    more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    kept = "" if dump is None else f"; weights and batch are in {dump} (TrainingModule.reproduce computes it again)"
    return (
        f"batch {step} gave {', '.join(failed)} that is infinite or not a number, on "
        f"{'; '.join(origins[:SHOWN])}{more}{kept}"
    )


def save_dump(path: Path, content: dict[str, Any]) -> None:
    """Writes plain values and tensors, on the CPU, for `torch.load(path, weights_only=True)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
