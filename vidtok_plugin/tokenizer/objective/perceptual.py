"""PerceptualLoss: LPIPS of every frame, computed in chunks, with weights that are neither trained nor saved."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.metrics.lpips_weights import load_lpips

CHUNK_PIXELS = 2**16  # pixels of the frames that pass through VGG16 together


class PerceptualLoss:
    """`loss(frames, reconstruction)`: (n, 3, h, w) twice -> the LPIPS of each frame (n,).

    Not a module: VGG16's weights are fixed, so they must not be parameters or in the state_dict of the objective.
    Copies share them. They are loaded by `load` or at first use, and moved to the device of the frames.
    """

    def __init__(self, vgg: Path | None = None, lpips: LPIPS | None = None) -> None:
        """vgg: as for `load_lpips`. lpips: an instance that is already loaded."""
        self._vgg, self._lpips = vgg, lpips

    def load(self) -> LPIPS:
        """LPIPS with its weights, which are loaded at the first call.

        Raises:
            FileNotFoundError: the weights are missing; the message says where to get them and how to train without.
        """
        if self._lpips is None:
            try:
                self._lpips = load_lpips(self._vgg)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error} Use objective.lpips_vgg=FILE for a file elsewhere, or objective.perceptual=none to train "
                    "without LPIPS."
                ) from error
        return self._lpips

    def __call__(self, frames: Tensor, reconstruction: Tensor, chunk_pixels: int = CHUNK_PIXELS) -> Tensor:
        lpips = self.load().to(reconstruction.device)
        chunk = max(1, chunk_pixels // (frames.shape[-2] * frames.shape[-1]))
        # Checked here: gradients are always off inside the function.
        with_gradient = torch.is_grad_enabled() and reconstruction.requires_grad
        return _Distances.apply(frames.detach().float(), reconstruction.float(), lpips, chunk, with_gradient)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the weights are fixed: an averaged copy of a model shares them


class _Distances(torch.autograd.Function):
    """The distances and their gradients, both computed in the forward pass, chunk by chunk.

    A frame's distance depends on that frame alone, so its gradient is the incoming scalar times an image that the
    forward pass already knows. No activation outlives its chunk, and none is recomputed, neither for the backward pass
    nor for the adaptive weight, which takes a gradient of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, reconstruction: Tensor, lpips: LPIPS, chunk: int, with_gradient: bool
    ) -> Tensor:
        distances, gradients = [], []
        for real, made in zip(frames.split(chunk), reconstruction.split(chunk), strict=True):
            with torch.set_grad_enabled(with_gradient):
                made = made.detach().requires_grad_(with_gradient)
                distance = lpips(real, made)
            distances.append(distance.detach())
            if with_gradient:
                # Scaled up for the backward pass: gradients spread over all pixels would underflow in float16.
                scale = float(made.shape[-2] * made.shape[-1])
                (gradient,) = torch.autograd.grad(distance, made, torch.full_like(distance, scale))
                gradients.append(gradient / scale)
        if with_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None, incoming.view(-1, 1, 1, 1) * gradient, None, None, None
