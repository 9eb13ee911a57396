"""Resizing frames: by area where they shrink, linearly where they grow, along each axis on its own."""

from functools import lru_cache

import numpy as np


def area_weights(source: int, target: int, start: float, length: float) -> np.ndarray:
    """The float32 matrix `(target, source)` that shrinks the `length` pixels from `start` on of one axis.

    Each target pixel is the mean of the source pixels that it covers, in proportion; `start` may be a
    fraction.
    """
    edges = start + np.arange(target + 1) * (length / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * (target / length)).astype(np.float32)


def linear_weights(source: int, target: int) -> np.ndarray:
    """The float32 matrix `(target, source)` that stretches one axis by linear interpolation between pixel
    centres."""
    centres = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.clip(1 - np.abs(centres[:, None] - np.arange(source)), 0, None).astype(np.float32)


@lru_cache(maxsize=64)
def resize_weights(source: int, target: int) -> np.ndarray:
    """The float32 matrix `(target, source)` that resizes one axis; its rows sum to 1."""
    weights = area_weights(source, target, 0.0, source) if target <= source else linear_weights(source, target)
    weights.setflags(write=False)
    return weights


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` to `(t, height, width, c)`; frames of that size are returned as
    they are."""
    t, h, w, c = frames.shape
    if (h, w) == (height, width):
        return frames
    rows = resize_weights(h, height) @ frames.reshape(t, h, w * c).astype(np.float32)  # (t, height, w * c)
    columns = rows.reshape(t, height, w, c).transpose(0, 1, 3, 2) @ resize_weights(w, width).T
    pixels = columns.transpose(0, 1, 3, 2)  # (t, height, width, c)
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` so that they just cover `height` x `width`."""
    _, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    return resize(frames, max(height, round(h * scale)), max(width, round(w * scale)))


def crop_out(frames: np.ndarray, height: int, width: int, place: tuple[float, float] | None = None) -> np.ndarray:
    """The middle `height` x `width` of frames `(t, h, w, c)`.

    With `place`, two numbers in 0..1, under 1, it is the part that lies there: (0, 0) is at the top left.
    """
    room = (frames.shape[1] - height, frames.shape[2] - width)
    if place is None:
        top, left = room[0] // 2, room[1] // 2
    else:
        top, left = (int(part * (pixels + 1)) for part, pixels in zip(place, room, strict=True))
    return frames[:, top : top + height, left : left + width]


def resize_and_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 frames `(t, h, w, c)` so that they just cover `height` x `width`, and cuts out the
    middle."""
    return crop_out(cover(frames, height, width), height, width)
