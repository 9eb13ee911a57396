"""PSNR and SSIM of frames, as in VidTok's published figures."""

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vidtok_plugin.metrics.psnr import frame_psnr

SSIM_WINDOW = 11  # pixels per side
PSNR_EPSILON = 1e-8  # added to the squared error, as published


def bounded_psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """`frame_psnr` with 1e-8 added to the mean squared error of values in [0, 1], as published: at most 80 dB.

    Otherwise a single exactly reproduced frame, such as a black one, would make the mean over all frames infinite.

    Example:
        >>> bounded_psnr(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16))
        tensor([[80., 80.]])
    """
    error = 10 ** (-frame_psnr(video, reconstruction) / 10)
    return -10 * torch.log10(error + PSNR_EPSILON)


def frame_ssim(video: Tensor, reconstruction: Tensor) -> Tensor:
    """SSIM of each frame: two videos (b, 3, t, h, w) in [-1, 1] -> (b, t). The reconstruction is clamped.

    Gaussian windows of 11 x 11 pixels with sigma 1.5 over values in [0, 1] (Wang et al. 2004).

    Raises:
        ValueError: frames are smaller than a window.

    Example:
        >>> video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
        >>> frame_ssim(video, video)
        tensor([[1., 1.]])
    """
    if min(video.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"frame_ssim: height and width must be at least {SSIM_WINDOW}, got {tuple(video.shape[-2:])}; "
            "use larger frames."
        )
    real, made = (
        rearrange((x.float() + 1) / 2, "b c t h w -> (b t) c h w") for x in (video, reconstruction.clamp(-1, 1))
    )
    ssim = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)  # a tuple only with return_full_image
    return ssim.view(video.shape[0], video.shape[2])
