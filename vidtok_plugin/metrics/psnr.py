"""PSNR, the objective's usual yardstick."""

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio


def frame_psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """PSNR in dB of each frame: (b, 3, t, h, w) twice, in [-1, 1] -> (b, t); the reconstruction is clamped."""
    return peak_signal_noise_ratio(
        reconstruction.clamp(-1, 1).float(), video.float(), data_range=2.0, dim=(1, 3, 4), reduction="none"
    )
