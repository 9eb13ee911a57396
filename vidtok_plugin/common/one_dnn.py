"""Products of float32 matrices by oneDNN, for processors on which PyTorch's own take longer.

On a CPU, PyTorch multiplies float32 matrices by MKL, which keeps its fastest kernels for Intel's processors. On a core
of an AMD EPYC (Zen 5) oneDNN takes less than half of the time: `python benchmarks/limits.py`.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vidtok_plugin.common.devices import cpu_capabilities
from vidtok_plugin.common.private_operations import unknown_operation

logger = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]  # x (..., i) -> x @ weight.T (..., o)

FEW_ROWS = 8  # for 1, oneDNN keeps the weight as it is; for 2 to 64 the layout is the same
# PyTorch's operations are private: names, and types of the arguments.
_OPERATIONS = {
    "_linear_pointwise": ["Tensor", "Tensor", "Optional[Tensor]", "str", "List[Optional[number]]", "Optional[str]"],
    "_reorder_linear_weight": ["Tensor", "Optional[int]"],
}


def multiplies(x: Tensor) -> bool:
    """Whether products of x are faster by oneDNN: float32 on a CPU that is fast by it, neither under autocast nor in
    compiled code."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.is_cpu and x.dtype == torch.float32 and is_faster()


@cache
def is_faster() -> bool:
    """Whether this processor multiplies faster by oneDNN: those with AVX-512 that are not Intel's."""
    intel = str(cpu_capabilities().get("cpu_name", "")).startswith("Intel")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel and is_available()


@cache
def is_available() -> bool:
    """Whether this PyTorch has oneDNN, and its operations are those that we know."""
    if not torch.backends.mkldnn.is_available():
        return False
    unknown = unknown_operation("mkldnn", _OPERATIONS)
    if unknown is not None:
        logger.warning(
            "one_dnn: PyTorch %s has no %s, so matrix products are slower on this CPU.", torch.__version__, unknown
        )
    return unknown is None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` of x (..., i) and a weight (o, i), with gradients; by oneDNN where that is faster."""
    if not multiplies(x) or weight.dtype != x.dtype:
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        multiplied: Tensor = _Linear.apply(x.flatten(0, -2), weight)
        return multiplied.view(*x.shape[:-1], len(weight))
    return product(x, weight)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., i) @ weight.T, of a weight (o, i) -> (..., o), without gradients. Either may be a transposed view."""
    if not x.numel() or not weight.numel():
        return F.linear(x, weight)
    multiplied: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return multiplied


def prepacked(weight: Tensor) -> Product:
    """`product` with a copy of a weight (o, i), laid out for any number of rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_ROWS)
    return partial(_packed_product, packed=packed)


def _packed_product(x: Tensor, packed: Tensor) -> Tensor:
    multiplied: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return multiplied


class _Linear(torch.autograd.Function):
    """For x (r, i) and weight (o, i)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(grad, x) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad (r, o).T @ x (r, i). A product copies its first factor if that is transposed, so that is the one that takes
    less, together with the gradient, which is copied into the weight's layout if it is transposed."""
    (rows, width), out = x.shape, grad.shape[1]
    if width * (rows + out) < rows * out:
        return product(x.t(), grad.t()).t()
    return product(grad.t(), x.t())
