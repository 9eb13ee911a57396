"""The cameras of an episode: which to read, and several of them side by side as one picture."""

from collections.abc import Sequence

import numpy as np

Cameras = str | Sequence[str]


def choose_cameras(camera: Cameras | None, available: Sequence[str], where: object) -> tuple[str, ...]:
    """The cameras to read: those named, in a list or separated by commas, or the only one.

    Raises:
        ValueError: one is unknown or named twice, or there are several and none is named.

    Example:
        >>> choose_cameras("wrist, front", ["front", "wrist"], "a dataset")
        ('wrist', 'front')
    """
    if camera is None:
        if len(available) != 1:
            raise ValueError(
                f"{where} has {len(available)} cameras: {', '.join(available)}; choose one or several with camera, "
                f"such as {','.join(available[:2])!r}."
            )
        return tuple(available)
    names = camera.split(",") if isinstance(camera, str) else list(camera)
    chosen = tuple(name.strip() for name in names)
    for name in chosen:
        if name not in available:
            raise ValueError(f"{where} has no camera {name!r}; choose from {', '.join(available) or 'none'}.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"{where}: camera must name at least one camera, each once, got {camera!r}.")
    return chosen


def beside(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos uint8 `(t, h, w, 3)` side by side, from left to right; lower ones have black rows below.

    Example:
        >>> beside([np.zeros((5, 4, 6, 3), np.uint8), np.zeros((5, 8, 2, 3), np.uint8)]).shape
        (5, 8, 8, 3)
    """
    if len(videos) == 1:
        return videos[0]
    height = max(video.shape[1] for video in videos)
    padded = [np.pad(video, ((0, 0), (0, height - video.shape[1]), (0, 0), (0, 0))) for video in videos]
    return np.concatenate(padded, axis=2)


def size_beside(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of videos of these sizes side by side."""
    return max(height for height, _ in sizes), sum(width for _, width in sizes)
