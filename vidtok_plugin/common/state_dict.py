"""Strict loading of a state dict, with one clear error for weights of another architecture."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

NAMED = 3  # differences that the error names


def load_state_dict_strictly(
    model: nn.Module, weights: Mapping[str, Tensor], *, who: str, source: str | Path, hint: Callable[[], str]
) -> None:
    """Load `weights`, read from `source`, into `model`.

    Raises:
        ValueError: weights are missing, unexpected, or of another shape. It begins with `who`, names the first few, and
            ends with `hint()`.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unexpected" for name in given if name not in own]
    problems += [
        f"{name} has the shape {shape} for {own[name]}"
        for name, shape in given.items()
        if name in own and own[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"{who}: the weights in {source} are those of another architecture: "
            f"{'; '.join(problems[:NAMED])}{more}{hint()}."
        )
    model.load_state_dict(weights)
