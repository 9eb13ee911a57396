"""Checks of input video: shape, size, dtype and range of values."""

import torch
from torch import Tensor

LARGEST_VALUE = 1.5  # float video beyond it has another range than [-1, 1]; a decoder's overshoot stays below


def as_float_video(video: Tensor, *, who: str, spatial_factor: int, dtype: torch.dtype, validate: bool) -> Tensor:
    """Video `(b, 3, t, h, w)`, uint8 in 0-255 or float in [-1, 1], as `dtype` in [-1, 1].

    Values are checked on the CPU, and on other devices only with `validate`, since that waits for the device.

    Raises:
        ValueError: for another shape, a size that is not a multiple of `spatial_factor`, or values out of range.
    """
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"{who}: video must have the shape (b, 3, t, h, w), got {tuple(video.shape)}.")
    if video.shape[2] == 0:
        raise ValueError(f"{who}: video must have at least one frame, got {tuple(video.shape)}.")
    for name, size in zip(("height", "width"), video.shape[-2:], strict=True):
        check_multiple(size, spatial_factor, who=who, name=name, of="the tokenizer's spatial factor")
    if video.dtype == torch.uint8:
        return (video.to(torch.float32) / 127.5 - 1).to(dtype)
    if not video.is_floating_point():
        raise ValueError(f"{who}: video must be uint8 in 0-255 or float in [-1, 1], got {video.dtype}.")
    if video.device.type == "cpu" or validate:
        largest = video.detach().abs().amax().item()
        if not largest <= LARGEST_VALUE:
            raise ValueError(
                f"{who}: float video must be in [-1, 1], got magnitudes up to {largest:.4g}; "
                "pass uint8 for 0-255, or scale it with `video / 127.5 - 1`."
            )
    return video.to(dtype)


def check_multiple(size: int, factor: int, *, who: str, name: str, of: str) -> None:
    """A ValueError that names the nearest valid sizes, unless `size` is a positive multiple of `factor`."""
    if size > 0 and size % factor == 0:
        return
    below, above = size // factor * factor, (size // factor + 1) * factor
    sizes = f"sizes are {below} and {above}" if below > 0 else f"size is {above}"
    raise ValueError(f"{who}: {name} must be a multiple of {factor} ({of}), got {size}; the nearest {sizes}.")
