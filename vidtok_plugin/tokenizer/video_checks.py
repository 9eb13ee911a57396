"""Checks of input video: shape, size, dtype and range of values."""

import torch
from torch import Tensor

from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import check_tensor

LARGEST_VALUE = 1.5  # float video beyond it has another range than [-1, 1]; a decoder's overshoot stays below


def as_float_video(video: Tensor, *, who: str, spatial_factor: int, dtype: torch.dtype, validate: bool) -> Tensor:
    """Video `(b, 3, t, h, w)`, uint8 in 0-255 or float in [-1, 1], as `dtype` in [-1, 1].

    Values are checked on the CPU, and on other devices only with `validate`, since that waits for the device.

    Raises:
        ValueError: for another shape, a size that is not a multiple of `spatial_factor`, or values out of range.
    """
    check_tensor(video, who=who, name="video")
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"{who}: video must have the shape (b, 3, t, h, w), got {tuple(video.shape)}.")
    for axis, what in ((0, "clip"), (2, "frame")):
        if video.shape[axis] == 0:
            raise ValueError(f"{who}: video must have at least one {what}, got {tuple(video.shape)}.")
    for name, size in zip(("height", "width"), video.shape[-2:], strict=True):
        check_multiple(size, spatial_factor, who=who, name=name, of="the tokenizer's spatial factor")
    if video.dtype == torch.uint8:
        return (video.to(torch.float32) / 127.5 - 1).to(dtype)
    if video.dtype not in FLOATS:
        raise ValueError(f"{who}: video must be uint8 in 0-255 or float in [-1, 1], got {video.dtype}.")
    if video.device.type == "cpu" or validate:
        largest = video.detach().abs().amax().item()
        if not largest <= LARGEST_VALUE:
            raise ValueError(
                f"{who}: float video must be in [-1, 1], got magnitudes up to {largest:.4g}; "
                "pass uint8 for 0-255, or scale it with `video / 127.5 - 1`."
            )
    return video.to(dtype)


def check_latents(latents: Tensor, channels: int, *, who: str) -> None:
    """A ValueError unless latents are floats (b, channels, T, H, W) and, on the CPU, finite."""
    check_tensor(latents, who=who, name="latents")
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise ValueError(f"{who}: latents must have the shape (b, {channels}, T, H, W), got {tuple(latents.shape)}.")
    if latents.dtype not in FLOATS:
        raise ValueError(f"{who}: latents must be floats, got {latents.dtype}; indices go to decode_indices.")
    if torch.compiler.is_exporting():  # a program's graph cannot depend on values
        return
    if latents.device.type == "cpu" and not (finite := latents.detach().isfinite()).all():
        place = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"{who}: latents must be finite, got {latents[place].item()} at position {place}.")


def check_multiple(size: int, factor: int, *, who: str, name: str, of: str) -> None:
    """A ValueError that names the nearest valid sizes, unless `size` is a positive multiple of `factor`."""
    if size > 0 and size % factor == 0:
        return
    below, above = size // factor * factor, (size // factor + 1) * factor
    sizes = f"sizes are {below} and {above}" if below > 0 else f"size is {above}"
    raise ValueError(f"{who}: {name} must be a multiple of {factor} ({of}), got {size}; the nearest {sizes}.")
