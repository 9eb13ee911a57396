"""Linear layers for few rows on a CPU, with weights that are prepacked once.

An ordinary product packs its weight in each call. This takes little of a large product's time, but up to half of the
time of one with few rows. MKL's layout is for a number of rows; oneDNN's serves any.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidtok_plugin.common import one_dnn
from vidtok_plugin.common.private_operations import unknown_operation
from world_model.transformer.fast.choice import functions
from world_model.transformer.fast.int8 import Int8Weight

logger = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]  # x (r, i) -> x @ weight.T (r, o)
Rows = int | Literal["varied"]  # of the inputs of many calls

MAX_ROWS = 32  # beyond it, packing takes a small part of a product's time


def prepack_linear(weight: Tensor, rows: Rows | None = None) -> Product:
    """The product with a weight (o, i), for many inputs of `rows` rows in all. A prepacked weight is a copy and does
    not follow later changes of the weight; without `rows` there is no copy."""
    if isinstance(weight, Int8Weight):
        return weight.product(prepack_linear(weight.detach(), "varied" if rows == "varied" else None))
    if rows is None or not weight.is_cpu or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return partial(_plain_product, weight=weight)
    if one_dnn.is_faster():
        return one_dnn.prepacked(weight)
    if rows == 1:
        return partial(torch.mm, mat2=weight.detach().t().contiguous())
    if rows != "varied" and 2 < rows <= MAX_ROWS and _can_prepack():
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)
        return partial(_packed_product, packed=packed, weight=weight.detach(), rows=rows)
    return partial(F.linear, weight=weight)


def _plain_product(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = functions(x).linear(x, weight)
    return product


# PyTorch's operations for prepacked weights are private: names, and types of the arguments.
_OPERATIONS = {
    "_mkl_reorder_linear_weight": ["Tensor", "int"],
    "_mkl_linear": ["Tensor", "Tensor", "Tensor", "Optional[Tensor]", "int"],
}


@cache
def _can_prepack() -> bool:
    """Whether this build of PyTorch has MKL, and its operations are those that we know."""
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    unknown = unknown_operation("mkl", _OPERATIONS)
    if unknown is not None:
        logger.warning(
            "prepack_linear: PyTorch %s has no %s, so rollouts of small batches are slower on a CPU.",
            torch.__version__,
            unknown,
        )
    return unknown is None


def _packed_product(x: Tensor, packed: Tensor, weight: Tensor, rows: int) -> Tensor:
    product: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
    return product
