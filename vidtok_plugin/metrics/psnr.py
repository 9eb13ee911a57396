"""PSNR of frames."""

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio


def frame_psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """PSNR in dB of each frame: two videos (b, 3, t, h, w) in [-1, 1] -> (b, t). The reconstruction is clamped.

    Example:
        >>> import torch
        >>> video = torch.zeros(1, 3, 2, 16, 16)
        >>> frame_psnr(video, video + 0.2)
        tensor([[20., 20.]])
    """
    return peak_signal_noise_ratio(
        reconstruction.clamp(-1, 1).float(), video.float(), data_range=2.0, dim=(1, 3, 4), reduction="none"
    )
