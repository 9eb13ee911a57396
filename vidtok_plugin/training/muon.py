"""Muon: momentum with orthogonalized updates for matrices and kernels, and AdamW for all other parameters.

Keller Jordan's method (https://kellerjordan.github.io/posts/muon/). Of a matrix it is the update of `torch.optim.Muon`,
bit for bit in bfloat16. That one refuses convolution kernels, as are all 84 weights of the Boxing tokenizer; they are
flattened here to (outputs, inputs times kernel). It also iterates in bfloat16 alone, and leaves all else to a second
optimizer.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Updates parameter groups with `muon=True` (weights of two or more dimensions) by Muon, the others by AdamW.

    bfloat16: orthogonalize in bfloat16, as Muon's author does: three times as fast where a CPU has instructions for it.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        bfloat16: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(groups, defaults)
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _muon(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        direction = grad.lerp(state["momentum"], group["momentum"]).flatten(1)
        scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
        parameter.sub_(orthogonalize(direction, self.dtype).view_as(parameter), alpha=group["lr"] * scale)

    def _adam(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], state["step"]
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].lerp_(grad.square(), 1 - beta2)
        root = (state["square"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - beta1**step))


def orthogonalize(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Moves the singular values of a matrix close to 1, by a quintic Newton-Schulz iteration in `dtype`.

    Example:
        >>> singular = torch.linalg.svdvals(orthogonalize(torch.randn(8, 32)))
        >>> bool(((singular > 0.6) & (singular < 1.3)).all())
        True
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
