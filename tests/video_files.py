"""Video files for tests: various containers, variable rates, damaged, truncated, rotated."""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

QUIET = {"libx265": {"x265-params": "log-level=none"}}


def moving_noise(num_frames: int, *, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Frames `(t, h, w, 3)` of different coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def smooth_motion(num_frames: int, *, height: int, width: int) -> np.ndarray:
    """Frames `(t, h, w, 3)` of moving stripes, each with its number in 8 black and white blocks of its top rows."""
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[..., 0] = columns * 255 // (width - 1)
        frame[..., 1] = rows * 255 // (height - 1)
        frame[..., 2] = (rows + columns + 4 * index) % 128 + 64
        for bit, block in enumerate(np.array_split(np.arange(width), 8)):
            frame[:12, block] = 255 if index >> bit & 1 else 0
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers in frames of `smooth_motion`, after any codec."""
    blocks = np.array_split(np.arange(frames.shape[2]), 8)
    bits = np.stack([frames[:, 3:9, block[3:-3]].mean(axis=(1, 2, 3)) > 127 for block in blocks], axis=1)
    return (bits @ (1 << np.arange(8))).tolist()


def write_file(
    path: Path,
    frames: np.ndarray,
    *,
    times: list[int] | None = None,
    fps: int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    keyframe_interval: int = 12,
    b_frames: int = 0,
    container: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encodes frames at a constant rate, or at `times` in ms; the path's suffix determines the container.

    container and options: options of FFmpeg's container and codec.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps, options=options or QUIET.get(codec, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = keyframe_interval
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        base = Fraction(1, fps) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index if times is None else times[index], base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_faststart(path: Path, frames: np.ndarray) -> Path:
    """An mp4 file with its index at the front, so that a truncated file declares too many frames."""
    return write_file(path, frames, container={"movflags": "faststart"})


def cut_off(path: Path, fraction: float) -> Path:
    """Truncates a file to a fraction of its length."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def overwrite(path: Path, start: float, stop: float) -> Path:
    """Overwrites the bytes between two fractions of a file's length with noise."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(0).integers(0, 256, last - first, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def rotate(path: Path, degrees: int = 0, *, matrix: Sequence[float] | None = None) -> Path:
    """Marks an mp4 file as rotated clockwise, or by a matrix [a, b, c, d], in its track header."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    place = header + 4 + (20 if data[header] == 0 else 32) + 16
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    a, b, c, d = (round(value * 65536) for value in matrix or [cos, sin, -sin, cos])
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def written_as(path: Path) -> tuple[str | None, int, int]:
    """The pixel format, height and width of a video file."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        return codec.pix_fmt, codec.height, codec.width
