"""A counter of floating-point operations that includes attention and packed products on a CPU.

PyTorch's counter has formulas for the operators that CUDA runs, and counts all others as zero. On a CPU that leaves out
attention, matrix-vector products and products with packed weights, for which this file has formulas. A multiplication
and an addition are two operations; masks save none, as in PyTorch's own formulas.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]

aten = torch.ops.aten


def product_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """The product of x (..., i) with a weight (o, i)."""
    return 2 * prod(x) * weight[0]


def packed_product_flops(x: Shape, packed: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """The same product, given the packed weight as well."""
    return product_flops(x, weight)


def vector_flops(matrix: Shape, *_: Any, **__: Any) -> int:
    """The product of a matrix with a vector."""
    return 2 * prod(matrix)


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    aten.mv: vector_flops,
}
if torch.backends.mkldnn.is_available():
    FORMULAS[torch.ops.mkldnn._linear_pointwise] = product_flops
if torch.backends.mkl.is_available():
    FORMULAS[torch.ops.mkl._mkl_linear] = packed_product_flops


def flop_counter() -> FlopCounterMode:
    """A context manager; `get_total_flops()` and `get_flop_counts()` return the operations that ran in it.

    In inference mode it fails on modules that return a parameter which requires a gradient.
    """
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)
