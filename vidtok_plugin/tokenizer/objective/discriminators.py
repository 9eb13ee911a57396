"""PatchGAN discriminators (arXiv 1611.07004) of frames (2D) and clips (3D)."""

from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn

WIDTHS = (3, 64, 128, 256, 512, 1)
MIN_SIZE = {"2d": 24, "3d": 1}  # height and width in pixels; smaller frames leave nothing for the last convolution


class Discriminator(nn.Module):
    """Video `(b, 3, t, h, w)` -> logits `(n, 1, ...)` of its patches, high for real; n frames (2D) or clips (3D).

    Names are those of published checkpoints behind `loss.discriminator.`: convolutions `main.0`, `.2`, `.5`, `.8` and
    `.11`, BatchNorms `main.3`, `.6` and `.9`. Real and reconstructed video are passed separately, in training mode, so
    each is normalized by its own batch statistics.

    Example:
        >>> import torch
        >>> Discriminator("3d")(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 1, 2, 4, 4])
    """

    def __init__(self, kind: Literal["2d", "3d"]) -> None:
        super().__init__()
        self.kind = kind
        # Both reduce height and width by 8; the 3D one reduces time by 4.
        strides: tuple[Any, ...] = (2, 2, 2, 1, 1) if kind == "2d" else (2, 2, (1, 2, 2), 1, 1)
        kernel = 4 if kind == "2d" else 3
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if kind == "2d" else (nn.Conv3d, nn.BatchNorm3d)
        self.main = nn.Sequential()
        for i, (c_in, c_out, stride) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strides, strict=True)):
            first, last = i == 0, i == len(strides) - 1
            self.main.append(conv(c_in, c_out, kernel, stride=stride, padding=1, bias=first or last))
            if not (first or last):
                self.main.append(norm(c_out))
            if not last:
                self.main.append(nn.LeakyReLU(0.2))
        for layer in self.main:
            if isinstance(layer, conv):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, norm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, video: Tensor) -> Tensor:
        if min(video.shape[-2:]) < MIN_SIZE[self.kind]:
            raise ValueError(
                f"Discriminator: height and width must be at least {MIN_SIZE[self.kind]} in {self.kind}, got "
                f"{tuple(video.shape[-2:])}; use larger frames, discriminator=3d or discriminator=none."
            )
        return self.main(rearrange(video, "b c t h w -> (b t) c h w") if self.kind == "2d" else video)
