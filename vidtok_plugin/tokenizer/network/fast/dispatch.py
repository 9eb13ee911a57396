"""When the fast path is used, and which of its ways: the only place that looks at device, gradients and compiler."""

import torch
from torch import Tensor, nn

from vidtok_plugin.common.reference import on_reference_path


def fast_path(network: nn.Module) -> bool:
    """Whether a whole clip takes the fast path through `network`, rather than its layers' own `forward`.

    Not under `reference_path()`, nor if a layer has forward hooks: kernels work on chunks and across layers, and a hook
    should see each layer's whole input and output, for short and long clips. Hooks of the network itself don't matter.
    """
    return fast_step() and not (not torch.compiler.is_compiling() and _layers_have_hooks(network))


def fast_step() -> bool:
    """Whether a step of a stream takes the fast path. Steps call no forward hooks."""
    # A compiler can't trace the context variable behind reference_path().
    return torch.compiler.is_compiling() or not on_reference_path()


def _layers_have_hooks(network: nn.Module) -> bool:
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in network.modules()
        if layer is not network
    )


def may_overwrite() -> bool:
    """Whether kernels may write into tensors that the network itself made, and work on chunks: in inference."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def on_cpu(x: Tensor) -> bool:
    """Whether what saves arithmetic, or the memory bandwidth of a CPU, is used.

    A GPU multiplies so fast that moving intermediate products takes longer: upsampling in space by products took 1.5 to
    1.8 times as long on an H200.
    """
    return x.device.type == "cpu"


def own_gradients(x: Tensor) -> bool:
    """Whether convolutions compute their gradients by functions of ours: in training on a CPU without autocast."""
    casts = torch.is_autocast_enabled("cpu")
    return on_cpu(x) and torch.is_grad_enabled() and not casts and not torch.compiler.is_compiling()
