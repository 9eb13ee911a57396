"""Strict loading of a state dict: another architecture, or weights that are no numbers, are one clear error."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

NAMED = 3  # differences that the error names
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_WEIGHT = 1e18  # the square of a larger one overflows float32


def build_with_weights(
    build: Callable[[], M], weights: Mapping[str, Tensor], *, who: str, source: str | Path, hint: Callable[[], str]
) -> M:
    """The module that `build` makes, with `weights` that were read from `source`.

    They are compared with a module on the meta device first, so that a config that asks for more than its weights
    contain allocates nothing. Where PyTorch creates modules on the meta device, it is put on the CPU, to have values.

    Raises:
        ValueError: weights are missing, unexpected, of another shape or type, or contain NaN, infinite or huge values.
            It begins with `who`. For another architecture it names the first few and ends with `hint()`.
    """
    with torch.device("meta"):
        expected = build().state_dict()
    _check_shapes(expected, weights, who=who, source=source, hint=hint)
    for name, tensor in weights.items():
        check_numbers(name, tensor, expected[name].dtype, who=who, source=source)
    with torch.device("cpu") if torch.empty(0).is_meta else nullcontext():
        model = build()
    _allocate(model)
    model.load_state_dict(weights)
    return model


def _allocate(model: nn.Module) -> None:
    """Memory for parameters that another library's context created on the meta device, as accelerate's does."""
    for layer in model.modules():
        for name, weight in layer._parameters.items():
            if weight is not None and weight.is_meta:
                empty = torch.empty_like(weight, device="cpu")
                layer._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)


def check_numbers(name: str, tensor: Tensor, dtype: torch.dtype, *, who: str, source: str | Path) -> None:
    """A ValueError that names the tensor and the place, unless it has finite numbers that `dtype` can take."""
    fits = tensor.dtype in FLOATS if dtype.is_floating_point else tensor.dtype == dtype
    if not fits or tensor.layout != torch.strided or tensor.device.type != "cpu":
        rule = "float16, bfloat16, float32 or float64" if dtype.is_floating_point else str(dtype)
        kind = "" if tensor.layout == torch.strided else f" ({tensor.layout})"
        where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
        raise ValueError(
            f"{who}: {name} in {source} must be an ordinary tensor of {rule}, got {tensor.dtype}{kind}{where}; save it "
            "again in that type."
        )
    if not dtype.is_floating_point or tensor.numel() == 0:
        return
    low, high = tensor.aminmax()  # NaN if any value is NaN
    if not -LARGEST_WEIGHT <= low <= high <= LARGEST_WEIGHT:
        place = tuple((~(tensor.double().abs() <= LARGEST_WEIGHT)).nonzero()[0].tolist())
        raise ValueError(
            f"{who}: {name} in {source} must have finite values of magnitude 1e18 at most, got {tensor[place].item()} "
            f"at {place}; the file is damaged or its training diverged: fetch it again, or take an earlier checkpoint."
        )


def _check_shapes(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    who: str,
    source: str | Path,
    hint: Callable[[], str],
) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in expected.items()}
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
