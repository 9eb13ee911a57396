"""Weights of a transformer's blocks in int8, for products with a few rows on a CPU.

A token reads every weight, which takes most of its time, and int8 is a quarter of float32. Each output channel has a
scale. Products with a few rows read the int8 weights, with inputs rounded to bfloat16; those with more, whose time is
arithmetic, multiply the same rounded weights in float32.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.common.private_operations import unknown_operation

MAX_ROWS = 8  # beyond it, the product in float32 takes less time
MULTIPLE = 32  # of a weight's columns: PyTorch's kernel reads beyond the end of others
LARGEST = 127


class Int8Weight(nn.Parameter):
    """A weight (o, i) whose values are int8 times a scale for each output channel; rounds the weight that is given."""

    quantized: Tensor  # (o, i) int8, with zero columns up to `MULTIPLE`
    scales: Tensor  # (o,) bfloat16

    def __new__(cls, data: Tensor, requires_grad: bool = False) -> "Int8Weight":
        data = data.detach()
        largest = data.abs().amax(1, keepdim=True)
        scales = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
        rounded = (data / scales).round().clamp(-LARGEST, LARGEST)
        weight: Int8Weight = torch.Tensor._make_subclass(cls, rounded * scales, False)
        weight.quantized = F.pad(rounded.to(torch.int8), (0, -data.shape[1] % MULTIPLE))
        weight.scales = scales.squeeze(1)
        return weight

    def product(self, many: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """x (r, i) -> x @ weight.T (r, o), for more than `MAX_ROWS` rows by `many`."""
        quantized, scales, padding = self.quantized, self.scales, -self.shape[1] % MULTIPLE

        def product(x: Tensor) -> Tensor:
            if len(x) > MAX_ROWS:
                return many(x)
            rows = x.bfloat16()
            if padding:
                rows = F.pad(rows, (0, padding))
            multiplied: Tensor = torch.ops.aten._weight_int8pack_mm(rows, quantized, scales)
            return multiplied.to(x.dtype)

        return product


@cache
def is_available() -> bool:
    """Whether PyTorch's operation, which is private, is the one that we know."""
    return unknown_operation("aten", {"_weight_int8pack_mm": ["Tensor", "Tensor", "Tensor"]}) is None
