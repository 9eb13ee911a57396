"""Products of float32 matrices by oneDNN, for processors on which PyTorch's own take longer.

On a CPU, PyTorch multiplies float32 matrices by MKL, which keeps its fastest kernels for Intel's processors. On a core
of an AMD EPYC (Zen 5) oneDNN takes less than half of the time: `python benchmarks/limits.py`.
"""

import logging
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]  # x (..., i) -> x @ weight.T (..., o)

FEW_ROWS = 8  # for 1, oneDNN keeps the weight as it is; for 2 to 64 the layout is the same
# PyTorch's operations are private: names, and types of the arguments.
_OPERATIONS = {
    "_linear_pointwise": ["Tensor", "Tensor", "Optional[Tensor]", "str", "List[Optional[number]]", "Optional[str]"],
    "_reorder_linear_weight": ["Tensor", "Optional[int]"],
}


def multiplies(x: Tensor) -> bool:
    """Whether products of x are faster by oneDNN: float32 on a CPU that is fast by it, and not under autocast."""
    return x.is_cpu and x.dtype == torch.float32 and is_faster() and not torch.is_autocast_enabled("cpu")


@cache
def is_faster() -> bool:
    """Whether this processor multiplies faster by oneDNN: those with AVX-512 that are not Intel's."""
    intel = str(torch.cpu.get_capabilities().get("cpu_name", "")).startswith("Intel")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel and is_available()


@cache
def is_available() -> bool:
    """Whether this PyTorch has oneDNN, and its operations are those that we know."""
    if not torch.backends.mkldnn.is_available():
        return False
    for name, known in _OPERATIONS.items():
        operation = getattr(torch.ops.mkldnn, name, None)
        types = None if operation is None else [str(argument.type) for argument in operation.default._schema.arguments]
        if types != known:
            logger.warning(
                "one_dnn: PyTorch %s has no mkldnn::%s(%s), so matrix products are slower on this CPU.",
                torch.__version__,
                name,
                ", ".join(known),
            )
            return False
    return True


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
