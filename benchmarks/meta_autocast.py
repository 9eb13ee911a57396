"""Autocast on tensors without data: what mixed precision casts, where there is no GPU to ask.

PyTorch has autocast for devices that compute and none for "meta", on which memory is counted. The rules here are those
of its CUDA autocast (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to ...") for what this
package's networks and losses use.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
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


class Casting(TorchFunctionMode):
    """Casts what functions take, as autocast to `dtype` on a GPU would, on whatever device the tensors are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # of weights, kept as autocast keeps them
        self._off = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._off == 0 and name in TO_LOWER:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif self._off == 0 and name in TO_FLOAT32:
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **kwargs)

    @contextmanager
    def off(self) -> Iterator[None]:
        self._off += 1
        yield
        self._off -= 1

    def _lower(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(self.dtype)
        if id(x) not in self._casts:
            # With gradients even where a recomputation has them off: the cast serves later operations too.
            with torch.enable_grad():
                self._casts[id(x)] = (x, x.to(self.dtype))
        return self._casts[id(x)][1]


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def casting(dtype: torch.dtype) -> Iterator[None]:
    """Inside, all tensors are cast as by autocast, and `torch.autocast(..., enabled=False)` switches that off."""
    mode = Casting(dtype)

    def checkpoint_casting(layer: nn.Module, x: Tensor, use_reentrant: bool) -> Tensor:
        def run(x: Tensor) -> Tensor:
            with mode:  # which is off inside of backward(), where the layer runs again
                return layer(x)

        return checkpoint(run, x, use_reentrant=use_reentrant)

    recomputing = mock.patch.object(encoder_decoder, "checkpoint", checkpoint_casting)
    with mock.patch.object(torch, "autocast", _stand_in(mode)), recomputing, mode:
        yield


def no_casting() -> AbstractContextManager[Any]:
    """Inside, `torch.autocast("meta", enabled=False)` is no error."""
    return mock.patch.object(torch, "autocast", _stand_in(None))


def _stand_in(mode: Casting | None) -> Callable[..., AbstractContextManager[None]]:
    def autocast(device_type: str, *, enabled: bool) -> AbstractContextManager[None]:
        assert not enabled, "networks and losses only ever switch autocast off"
        return nullcontext() if mode is None else mode.off()

    return autocast
