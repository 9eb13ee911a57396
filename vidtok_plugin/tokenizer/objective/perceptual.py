"""LPIPS as a term of the objective: of every frame, in little memory, and no part of what is trained or saved."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.metrics.lpips_weights import load_lpips

CHUNK_PIXELS = 2**16  # of the frames that go through VGG16 at once


class PerceptualLoss:
    """`loss(frames, reconstruction)`: (n, 3, h, w) twice -> the LPIPS of each frame (n,).

    Not a module: VGG16's weights are fixed, and neither in the state_dict nor among the parameters of what holds this;
    copies share them. They are loaded by `load`, or at the first use, and follow the frames to their device.
    """

    def __init__(self, vgg: Path | None = None, lpips: LPIPS | None = None) -> None:
        """vgg: as `load_lpips` takes it; lpips: one that is there already."""
        self._vgg, self._lpips = vgg, lpips

    def load(self) -> LPIPS:
        """LPIPS with its weights, loaded if it is not yet.

        Raises:
            FileNotFoundError: the weights can't be had; the message says from where to get them, and how to do without.
        """
        if self._lpips is None:
            try:
                self._lpips = load_lpips(self._vgg)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error} Name a file that lies elsewhere with objective.lpips_vgg=FILE, or train without LPIPS by "
                    "choice: objective.perceptual=none."
                ) from error
        return self._lpips

    def __call__(self, frames: Tensor, reconstruction: Tensor, chunk_pixels: int = CHUNK_PIXELS) -> Tensor:
        lpips = self.load().to(reconstruction.device)
        chunk = max(1, chunk_pixels // (frames.shape[-2] * frames.shape[-1]))
        # Asked here: inside the function, gradients always are off.
        with_gradient = torch.is_grad_enabled() and reconstruction.requires_grad
        return _Distances.apply(frames.detach().float(), reconstruction.float(), lpips, chunk, with_gradient)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # fixed, so that an averaged copy of a model needs no second VGG16


class _Distances(torch.autograd.Function):
    """The distances, and in the same pass their gradients, chunk after chunk.

    A frame's distance depends on that frame alone, so that its gradient is the incoming number times a picture that is
    known at once. No activation outlives its chunk, and none is computed again: neither for the backward pass nor for
    the adaptive weight, which asks for gradients of its own.
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
                # Scaled up meanwhile: spread over all pixels, gradients would vanish in float16.
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
