"""PSNR and SSIM of frames equal the published implementation."""

import numpy as np
import pytest
import torch
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor

from vidtok_plugin.metrics.frames import bounded_psnr, frame_ssim

GOLDEN = load_file(GOLDEN_FILES / "training.safetensors")


def golden_videos() -> tuple[Tensor, Tensor]:
    """The golden pair of two frames, as clips (1, 3, 2, 64, 64) in [-1, 1]."""
    a, b = (
        torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 3, 64, 64)).astype(np.float32)).clamp(-1, 1)
        for seed in (5, 6)
    )
    return a.movedim(0, 1)[None], (a + 0.3 * b).clamp(-1, 1).movedim(0, 1)[None]


def test_psnr_equals_the_published_one() -> None:
    torch.testing.assert_close(bounded_psnr(*golden_videos()).mean(), GOLDEN["metric.psnr"][0], rtol=0.0, atol=1e-4)


def test_ssim_equals_the_published_one() -> None:
    torch.testing.assert_close(frame_ssim(*golden_videos()).mean(), GOLDEN["metric.ssim"][0], rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("metric", [bounded_psnr, frame_ssim])
def test_each_frame_has_its_own_value(metric: type) -> None:
    real, made = (torch.cat([video, video.flip(2) / 2]) for video in golden_videos())
    values = metric(real, made)
    assert values.shape == (2, 2) and len(values.unique()) == 4
    for clip in range(2):
        for frame in range(2):
            alone = (video[clip : clip + 1, :, frame : frame + 1] for video in (real, made))
            torch.testing.assert_close(metric(*alone)[0, 0], values[clip, frame])


@pytest.mark.parametrize("metric", [bounded_psnr, frame_ssim])
def test_a_reconstruction_beyond_the_range_is_clamped(metric: type) -> None:
    real, made = golden_videos()
    assert (3 * made).abs().max() > 1
    torch.testing.assert_close(metric(real, 3 * made), metric(real, (3 * made).clamp(-1, 1)))


def test_an_exactly_reproduced_frame_has_80_db_and_ssim_1() -> None:
    """torchmetrics returns infinity, so one black frame would make the mean of a video infinite."""
    black = torch.full((1, 3, 1, 16, 16), -1.0)
    assert bounded_psnr(black, black).tolist() == [[80.0]]
    torch.testing.assert_close(frame_ssim(black, black), torch.ones(1, 1))


def test_frames_smaller_than_ssims_window_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"at least 11, got \(8, 16\)"):
        frame_ssim(torch.zeros(1, 3, 1, 8, 16), torch.zeros(1, 3, 1, 8, 16))
