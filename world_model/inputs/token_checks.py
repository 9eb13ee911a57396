"""Checks that tokens fit a model: their kind, their grid, and their values."""

import torch
from torch import Tensor

from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import as_int64, check_range, check_tensor
from world_model.architecture import TokenSpec


def checked_tokens(tokens: Tensor, spec: TokenSpec, dtype: torch.dtype, *, validate: bool | None = None) -> Tensor:
    """Tokens (b, T, H, W[, p]) that fit the model: codes as integers that index a table, patches as `dtype`.

    Values are checked with `validate=True`, which waits for the device; by default on the CPU only; and not at all with
    `validate=False`, for tokens that were checked before.

    Raises:
        ValueError: no tensor, another kind or grid, codes outside the codebook, or patches that are not finite.
    """
    grid, patch_dim = (spec.height, spec.width), spec.patch_dim
    check_tensor(tokens, who="WorldModel", name="codes" if patch_dim is None else "patches")
    if validate is None:
        validate = tokens.device.type == "cpu"
    if patch_dim is not None:
        if tokens.shape[2:] != (*grid, patch_dim) or tokens.dtype not in FLOATS:
            raise ValueError(
                f"WorldModel: patches must be floats of shape (b, T, {grid[0]}, {grid[1]}, {patch_dim}), got "
                f"{tokens.dtype} of {tuple(tokens.shape)}."
            )
        if validate and not (finite := tokens.isfinite()).all():
            place = tuple((~finite).nonzero()[0].tolist())
            raise ValueError(f"WorldModel: patches must be finite, got {tokens[place].item()} at position {place}.")
        return tokens.to(dtype)
    if tokens.ndim != 4 or tokens.shape[2:] != grid or tokens.is_floating_point():
        raise ValueError(
            f"WorldModel: codes must be integers of shape (b, T, {grid[0]}, {grid[1]}), got "
            f"{tokens.dtype} of {tuple(tokens.shape)}."
        )
    if tokens.dtype not in (torch.int32, torch.int64):
        tokens = as_int64(tokens, who="WorldModel", name="codes")
    if validate:
        assert spec.codebook_size is not None
        check_range(tokens, spec.codebook_size, who="WorldModel", name="codes")
    return tokens
