"""Autocast for tensors without data: the casts of mixed precision on a GPU, counted on a machine without one.

PyTorch's device "meta", on which memory is counted, has no autocast. The rules here are those of CUDA autocast
(https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to ...") for the functions that this
package's networks and losses use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from vidtok_plugin.tokenizer.network import encoder_decoder

TO_LOWER = {
    *("conv1d", "conv2d", "conv3d", "linear", "scaled_dot_product_attention"),
    *("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
}
TO_FLOAT32 = {
    *("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "exp", "log", "pow", "__pow__", "norm"),
    *("l1_loss", "mse_loss", "cross_entropy", "sum"),
}


class _Autocast(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # weights and their casts, which autocast caches too

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._dtype is not None and name in TO_LOWER:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif self._dtype is not None and name in TO_FLOAT32:
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **kwargs)

    @contextmanager
    def off(self, device_type: str, *, enabled: bool) -> Iterator[None]:
        """Stands for `torch.autocast(device_type, enabled=False)`."""
        assert not enabled, "networks and losses only switch autocast off"
        dtype, self._dtype = self._dtype, None
        yield
        self._dtype = dtype

    def _lower(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(self._dtype)
        if id(x) not in self._casts:
            # With gradients, even if a recomputation has them off: later operations use the cast too.
            with torch.enable_grad():
                self._casts[id(x)] = (x, x.to(self._dtype))
        return self._casts[id(x)][1]


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def meta_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, functions cast on any device as CUDA autocast to `dtype` does; None casts nothing."""
    mode = _Autocast(dtype)

    def checkpoint_with_casts(run: Callable[..., Tensor], *args: Any, use_reentrant: bool) -> Tensor:
        def run_with_casts(*args: Any) -> Tensor:
            with mode:  # PyTorch suspends it inside backward(), where a checkpoint runs again
                return run(*args)

        return checkpoint(run_with_casts, *args, use_reentrant=use_reentrant)

    recomputing = mock.patch.object(encoder_decoder, "checkpoint", checkpoint_with_casts)
    with mock.patch.object(torch, "autocast", mode.off), recomputing, mode:
        yield
