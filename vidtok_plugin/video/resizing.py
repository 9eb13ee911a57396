"""Resizing frames separably: by area when an axis shrinks, linearly when it grows.

No library's call serves as well. From 1280 to 455 columns, Pillow's box filter takes 1.5 times as long and, since it
weighs whole pixels, is up to 31 levels of 255 off the mean of what a pixel covers. PyTorch's antialiased `interpolate`
takes a quarter of the time, but is a wider filter (1 level off on average), and a reader process does without PyTorch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BAND = 12  # source pixels per product, about: with more, most weights are 0 and BLAS uses threads


def area_weights(source: int, target: int, start: float, length: float) -> np.ndarray:
    """The float32 matrix `(target, source)` that shrinks `length` pixels from `start` on to `target` pixels.

    Each target pixel is the mean of the source pixels that it covers, weighted by overlap; `start` may be fractional.
    """
    edges = start + np.arange(target + 1) * (length / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * (target / length)).astype(np.float32)


def linear_weights(source: int, target: int) -> np.ndarray:
    """The float32 matrix `(target, source)` that enlarges an axis by linear interpolation between pixel centers."""
    centers = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.clip(1 - np.abs(centers[:, None] - np.arange(source)), 0, None).astype(np.float32)


@lru_cache(maxsize=64)
def resize_weights(source: int, target: int) -> np.ndarray:
    """The float32 matrix `(target, source)` that resizes an axis; its rows sum to 1."""
    weights = area_weights(source, target, 0.0, source) if target <= source else linear_weights(source, target)
    weights.setflags(write=False)
    return weights


@dataclass(frozen=True, kw_only=True)
class _Band:
    """A range of target pixels of an axis, their source pixels, and the weights `(targets, sources)`."""

    targets: slice
    sources: slice
    weights: np.ndarray


@lru_cache(maxsize=256)
def _bands(source: int, target: int, start: int, stop: int, channels: int = 1) -> tuple[slice, list[_Band]]:
    """The range of source pixels for the targets `start` to `stop`, and the weights as bands, without most zeros.

    Targets count from `start`, sources from the first of the range. With `channels`, adjacent values of the axis are
    the channels of a pixel, which do not mix.
    """
    weights = resize_weights(source, target)[start:stop]
    needed = np.flatnonzero(weights.any(axis=0))
    weights = weights[:, needed[0] : needed[-1] + 1]
    count = max(1, BAND * target // source)
    bands = []
    for first in range(0, stop - start, count):
        used = np.flatnonzero(weights[first : first + count].any(axis=0))
        block = np.ascontiguousarray(weights[first : first + count, used[0] : used[-1] + 1])
        targets = slice(channels * first, channels * (first + len(block)))
        sources = slice(channels * int(used[0]), channels * (int(used[-1]) + 1))
        block = np.kron(block, np.eye(channels, dtype=np.float32))
        bands.append(_Band(targets=targets, sources=sources, weights=block))
    return slice(int(needed[0]), int(needed[-1]) + 1), bands


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` to `(t, height, width, c)`; returns frames of that size unchanged.

    Example:
        >>> resize(np.array([[0, 10, 20, 30]], np.uint8).reshape(1, 1, 4, 1), 1, 2).flatten().tolist()
        [5, 25]
    """
    if frames.shape[1:3] == (height, width):
        return frames
    return _resize_region(frames, (height, width), (0, height), (0, width))


def _resize_region(
    frames: np.ndarray, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """A region, given by ranges of rows and columns, of frames `(t, h, w, c)` resized to `size`."""
    t, h, w, c = frames.shape
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    seen_rows, down = _bands(h, size[0], *rows)
    seen_columns, across = _bands(w, size[1], *columns, channels=c)
    frames = frames[:, seen_rows, seen_columns]
    lower = np.empty((height, frames.shape[2] * c), np.float32)
    narrower = np.empty((height, width * c), np.float32)
    resized = np.empty((t, height, width, c), np.uint8)
    for frame, result in zip(frames, resized, strict=True):  # frame by frame, to stay in the cache
        for band in down:
            pixels = frame[band.sources].reshape(-1, lower.shape[1]).astype(np.float32)
            np.matmul(band.weights, pixels, out=lower[band.targets])
        for band in across:
            np.matmul(lower[:, band.sources], band.weights.T, out=narrower[:, band.targets])
        np.clip(np.rint(narrower, out=narrower), 0, 255, out=narrower)
        result[...] = narrower.reshape(height, width, c)
    return resized


def cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` to the smallest size that covers `height` x `width`."""
    return resize(frames, *_covering(frames, height, width))


def crop_out(frames: np.ndarray, height: int, width: int, place: tuple[float, float] | None = None) -> np.ndarray:
    """A crop of `height` x `width` of frames `(t, h, w, c)`: the center, or at `place`.

    `place` is the relative vertical and horizontal position in [0, 1): (0, 0) is the top left.
    """
    top, left = _corner(frames.shape[1] - height, frames.shape[2] - width, place)
    return frames[:, top : top + height, left : left + width]


def resize_and_crop(
    frames: np.ndarray, height: int, width: int, place: tuple[float, float] | None = None
) -> np.ndarray:
    """`crop_out` of `cover`, computing only the crop."""
    covering = _covering(frames, height, width)
    if frames.shape[1:3] == covering:
        return crop_out(frames, height, width, place)
    top, left = _corner(covering[0] - height, covering[1] - width, place)
    return _resize_region(frames, covering, (top, top + height), (left, left + width))


def resize_and_pad(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` to the largest size within `height` x `width`, in the center of black.

    Example:
        >>> resize_and_pad(np.full((1, 2, 4, 1), 9, np.uint8), 4, 4)[0, :, 0, 0].tolist()
        [0, 9, 9, 0]
    """
    t, h, w, c = frames.shape
    scale = min(height / h, width / w)
    inner = resize(frames, min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale))))
    if inner.shape[1:3] == (height, width):
        return inner
    top, left = _corner(height - inner.shape[1], width - inner.shape[2], None)
    padded = np.zeros((t, height, width, c), np.uint8)
    padded[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return padded


def _covering(frames: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """The smallest size of frames `(t, h, w, c)`, at their aspect ratio, that covers `height` x `width`."""
    _, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    return max(height, round(h * scale)), max(width, round(w * scale))


def _corner(down: int, right: int, place: tuple[float, float] | None) -> tuple[int, int]:
    """The top row and left column of a crop that can move by `down` and `right` pixels."""
    if place is None:
        return down // 2, right // 2
    return int(place[0] * (down + 1)), int(place[1] * (right + 1))
