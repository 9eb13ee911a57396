"""Dispatch: whether the fast path is used, and which kernels, by device, gradient mode and compiler."""

import torch
from torch import Tensor, nn

from vidtok_plugin.common.reference import on_reference_path

# Pixels of video that pass through a network at once in inference, by device type.
GROUP_PIXELS = {"cpu": 2**19}
OTHER_GROUP_PIXELS = 2**22


def fast_path(network: nn.Module) -> bool:
    """Whether a whole clip takes the fast path through `network`, instead of each layer's `forward`.

    Not under `reference_path()`, nor if a layer has hooks on its forward or backward pass. Kernels work on chunks and
    across layers, but a hook should see a layer's whole input and output, for short and long clips alike. Hooks of the
    network itself make no difference.
    """
    return _compiling() or not (on_reference_path() or _layers_have_hooks(network))


def fast_step() -> bool:
    """Whether a step of a stream takes the fast path. Steps call no hooks."""
    return _compiling() or not on_reference_path()


def inference() -> bool:
    """Whether kernels may work on chunks and groups, and write into tensors that the network itself made."""
    return not torch.is_grad_enabled() and not _compiling()


def group_pixels(x: Tensor) -> int:
    """About how many pixels of video pass through a network at once in inference."""
    return GROUP_PIXELS.get(x.device.type, OTHER_GROUP_PIXELS)


def on_cpu(x: Tensor) -> bool:
    """Whether kernels save arithmetic at the cost of moving more data, and convolutions in time run as 2D ones.

    A GPU multiplies so fast that moving the data takes longer: upsampling in space by products took 1.5 to 1.8 times as
    long on an H200.
    """
    return x.device.type == "cpu"


def own_gradients(x: Tensor) -> bool:
    """Whether convolutions use our own autograd functions: in training on a CPU without autocast."""
    return on_cpu(x) and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not _compiling()


def channels_last_weights() -> bool:
    """Whether convolutions lay out their weights for channels-last memory; a compiler chooses layouts itself."""
    return not _compiling()


def _compiling() -> bool:
    # A compiler traces the fast path: it can read neither the context variable behind reference_path() nor hooks.
    return torch.compiler.is_compiling()


def _layers_have_hooks(network: nn.Module) -> bool:
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in network.modules()
        if layer is not network
    )
