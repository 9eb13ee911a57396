"""Conversion between uint8 frames and float video in [-1, 1]."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def to_uint8(video: Tensor) -> np.ndarray:
    """Video `(..., 3, t, h, w)` as uint8 RGB frames `(..., t, h, w, 3)`; values beyond [-1, 1] are clipped.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.0, 1.5]).view(3, 1, 1, 1)).tolist()
        [[[[0, 128, 255]]]]
    """
    pixels = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "... c t h w -> ... t h w c").cpu().numpy()


def from_uint8(frames: Tensor) -> Tensor:
    """uint8 frames `(..., t, h, w, 3)` as float32 video `(..., 3, t, h, w)` in [-1, 1].

    Example:
        >>> from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)).flatten().tolist()
        [-1.0, -0.6..., 1.0]
    """
    return rearrange(frames, "... t h w c -> ... c t h w").contiguous().float().div_(127.5).sub_(1.0)
