"""The choice between the transformer's definition and its fast version."""

from types import ModuleType

import torch
from torch import Tensor

from vidtok_plugin.common import one_dnn
from vidtok_plugin.common.reference import on_reference_path
from world_model.transformer import functional
from world_model.transformer.fast import functional as fast_functional

CPU_DTYPES = (torch.float32, torch.float64)  # half precision gains nothing


def functions(x: Tensor) -> ModuleType:
    """The module with the functions for a tensor like x: `fast.functional` on a CPU, else `functional`."""
    on_cpu = x.is_cpu and x.dtype in CPU_DTYPES
    return fast_functional if on_cpu and not torch.compiler.is_compiling() and not on_reference_path() else functional


def chunks_attention(q: Tensor, k: Tensor) -> bool:
    """Whether causal attention runs in chunks of queries: in training on a CPU."""
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    return q.is_cpu and trains and not torch.compiler.is_compiling() and not on_reference_path()


def multiplies_attention(q: Tensor) -> bool:
    """Whether queries of a step attend by products of matrices: in bfloat16 on a CPU, where PyTorch's kernel takes two
    to six times as long."""
    return q.is_cpu and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


def decodes_packed(cache: Tensor, weight: Tensor) -> bool:
    """Whether many steps go through `PackedBlocks`, for keys and weights like these."""
    return (
        decodes_flat()
        and not torch.compiler.is_compiling()
        and one_dnn.multiplies(cache)
        and one_dnn.multiplies(weight)
    )


def decodes_flat() -> bool:
    """Whether steps go through `FlatDecodeBlock`: outside `reference_path()`, and in compiled code."""
    return torch.compiler.is_compiling() or not on_reference_path()
