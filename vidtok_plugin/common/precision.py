"""The precision that a module computes in, for those who may choose: float32, or bfloat16 where that is faster."""

from copy import deepcopy
from typing import Literal, TypeVar

import torch
from torch import nn

from vidtok_plugin.common.devices import has_fast_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def in_precision(module: ModuleT, precision: Precision) -> ModuleT:
    """The module as it is for float32, or a copy in bfloat16. `auto` is bfloat16 if the module's device has fast
    products of it.

    Example:
        >>> in_precision(nn.Linear(2, 2), "bfloat16").weight.dtype
        torch.bfloat16
    """
    weight = next(module.parameters())
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(weight.device.type) else "float32"
    if precision == "float32" or weight.dtype == torch.bfloat16:
        return module
    return deepcopy(module).to(torch.bfloat16)
