"""Linear layers for few rows on a CPU, with weights that are prepacked once.

An ordinary product packs its weight in each call. This takes little of a large product's time, but up to half of the
time of one with few rows.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]  # x (r, i) -> x @ weight.T (r, o)

MAX_ROWS = 32  # beyond it, packing takes a small part of a product's time


def prepack_linear(weight: Tensor, rows: int | None = None) -> Product:
    """The product with a weight (o, i), for inputs of `rows` rows in all. A prepacked weight is a copy and does not
    follow later changes of the weight; without `rows` there is no copy."""
    if rows is None or not weight.is_cpu or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return partial(F.linear, weight=weight)
    if rows == 1:
        return partial(torch.mm, mat2=weight.detach().t().contiguous())
    if 2 < rows <= MAX_ROWS and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)
        return partial(_packed_product, packed=packed, weight=weight.detach(), rows=rows)
    return partial(F.linear, weight=weight)


def _packed_product(x: Tensor, packed: Tensor, weight: Tensor, rows: int) -> Tensor:
    product: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
    return product
