"""PSNR and SSIM of single frames, as the figures that VidTok publishes take them."""

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vidtok_plugin.metrics.psnr import frame_psnr

SSIM_WINDOW = 11  # pixels a side
PSNR_EPSILON = 1e-8  # on the squared error, as published


def bounded_psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """`frame_psnr` with 1e-8 added to the mean squared error of [0, 1] values, as published: at most 80 dB.

    A single frame that is reproduced exactly, black for example, would make the mean of all infinite otherwise.

    Example:
        >>> bounded_psnr(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16))
        tensor([[80., 80.]])
    """
    error = 10 ** (-frame_psnr(video, reconstruction) / 10)
    return -10 * torch.log10(error + PSNR_EPSILON)


def frame_ssim(video: Tensor, reconstruction: Tensor) -> Tensor:
    """SSIM of each frame: (b, 3, t, h, w) twice, in [-1, 1] -> (b, t); the reconstruction is clamped.

    11 x 11 Gaussian windows of sigma 1.5 over values in [0, 1] (Wang et al. 2004); frames must hold one.

    Example:
        >>> video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
        >>> frame_ssim(video, video)
        tensor([[1., 1.]])
    """
    if min(video.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"frame_ssim: height and width must be at least {SSIM_WINDOW}, got {tuple(video.shape[-2:])}; "
            "compare larger frames."
        )
    real, made = (
        rearrange((x.float() + 1) / 2, "b c t h w -> (b t) c h w") for x in (video, reconstruction.clamp(-1, 1))
    )
    ssim = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)  # a tuple only where more is asked for
    return ssim.view(video.shape[0], video.shape[2])
