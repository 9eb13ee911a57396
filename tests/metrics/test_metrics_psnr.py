"""PSNR of frames, in decibels, with a clamped reconstruction."""

import numpy as np
import torch

from vidtok_plugin.metrics.psnr import frame_psnr


def test_psnr_is_in_decibels_and_clamps_the_reconstruction() -> None:
    video = torch.zeros(2, 3, 4, 8, 8)
    assert frame_psnr(video, video + 0.2).shape == (2, 4)
    torch.testing.assert_close(frame_psnr(video, video + 0.2), torch.full((2, 4), 20.0))
    torch.testing.assert_close(frame_psnr(video, video + 7.0), torch.full((2, 4), 20 * np.log10(2.0)).float())
    assert (frame_psnr(video, video) > 90).all()
