"""A known picture, converted to YUV by the standards' formulas, is read as it was: matrix, range, depth, size, turn."""

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import rotate

from vidtok_plugin.video import probe, read_frames
from vidtok_plugin.video.preparation import Preparation
from vidtok_plugin.video.resizing import resize
from vidtok_plugin.video.video_file import PngFolder, VideoFile

BT601, BT709, BT2020, UNKNOWN = 6, 1, 9, 2  # as files number them
RED_BLUE = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593), UNKNOWN: (0.299, 0.114)}
COLORS = [
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
    [255, 255, 0],
    [0, 255, 255],
    [255, 0, 255],
    [255, 255, 255],
    [0, 0, 0],
]


def picture(height: int, width: int) -> np.ndarray:
    """uint8 RGB `(height, width, 3)`: eight colors at their extremes, and below them a ramp of grays."""
    image = np.empty((height, width, 3), np.uint8)
    for color, columns in zip(COLORS, np.array_split(np.arange(width), 8), strict=True):
        image[: height // 2, columns] = color
    image[height // 2 :] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    return image


def flat(height: int, width: int) -> np.ndarray:
    """Where no edge between colors is near, whose chroma may be interpolated."""
    inside = np.ones((height, width), bool)
    for columns in np.array_split(np.arange(width), 8)[1:]:
        inside[: height // 2, columns[0] - 4 : columns[0] + 4] = False
    inside[height // 2 - 4 : height // 2 + 4] = False
    return inside


def planes(image: np.ndarray, matrix: int, full: bool, depth: int, halved: bool) -> list[np.ndarray]:
    """Y, Cb and Cr of an image, by ITU-R BT.601, 709 and 2020."""
    red, blue = RED_BLUE[matrix]
    r, g, b = np.moveaxis(image / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)]
    largest, scale = 2**depth - 1, 2 ** (depth - 8)
    luma = y * largest if full else (16 + 219 * y) * scale
    chroma = [c * (largest if full else 224 * scale) + 128 * scale for c in chroma]
    if halved:
        odd = [(0, side % 2) for side in y.shape]
        padded = [np.pad(c, odd, mode="edge") for c in chroma]
        chroma = [c.reshape(c.shape[0] // 2, 2, c.shape[1] // 2, 2).mean((1, 3)) for c in padded]
    kind = np.uint8 if depth == 8 else np.uint16
    return [np.clip(np.rint(plane), 0, largest).astype(kind) for plane in (luma, *chroma)]


def write_pictures(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    codec: str = "ffv1",
    pixels: str = "yuv420p",
    matrix: int = BT601,
    full: bool = False,
    times: Sequence[int] | None = None,
) -> Path:
    """Images without loss in a file that declares matrix and range; at `times` in ms, or 25 a second."""
    options = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}}.get(codec, {})
    height, width = images[0].shape[:2]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        stream.codec_context.time_base, stream.codec_context.thread_count = Fraction(1, 1000), 1
        # x265's decoding times of fewer frames than its B-frames wait for are memory that was never set.
        stream.codec_context.max_b_frames = 0
        for index, image in enumerate(images):
            frame = av.VideoFrame(width, height, pixels)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            frame.pts, frame.time_base = (40 * index if times is None else times[index]), Fraction(1, 1000)
            depth = 10 if "10" in pixels else 8
            for plane, values in zip(frame.planes, planes(image, matrix, full, depth, "420" in pixels), strict=True):
                rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                rows[: values.shape[0], : values.shape[1]] = values
                plane.update(rows.tobytes())
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020, UNKNOWN])
@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.mp4", "libx264", "yuv420p", (64, 96)),
        ("a.mp4", "libx264", "yuv420p10le", (64, 96)),
        ("a.mkv", "libx265", "yuv420p10le", (64, 96)),
        ("a.mp4", "libx264", "yuv444p", (63, 95)),
        ("a.mkv", "ffv1", "yuv420p", (63, 95)),
        ("a.mkv", "ffv1", "yuv420p10le", (63, 95)),
    ],
)
def test_a_picture_is_read_as_it_was(
    tmp_path: Path, name: str, codec: str, pixels: str, size: tuple[int, int], matrix: int, full: bool
) -> None:
    image = picture(*size)
    path = write_pictures(tmp_path / name, [image] * 2, codec=codec, pixels=pixels, matrix=matrix, full=full)
    read = read_frames(path, [1])[0]
    assert read.shape == image.shape and (probe(path).height, probe(path).width) == size
    assert np.abs(read.astype(int) - image)[flat(*size)].max() <= 3


def test_a_wrong_matrix_or_range_would_be_seen(tmp_path: Path) -> None:
    """The tolerance is far below what reading another matrix or range does to the picture."""
    image = picture(64, 96)
    for matrix, full, declared in ((BT709, False, BT601), (BT601, True, BT601)):
        wrong = write_pictures(tmp_path / "a.mkv", [image], matrix=matrix, full=full)
        with av.open(str(wrong)) as file:
            frame = next(file.decode(video=0))
        frame.colorspace, frame.color_range = declared, 1
        error = np.abs(frame.to_ndarray(format="rgb24").astype(int) - image)[flat(64, 96)].max()
        assert error > 15


def test_all_at_once_is_brought_to_one_size_and_rate(tmp_path: Path) -> None:
    """Odd size, 10 bits, full range, turned by 90 degrees, frames at irregular times."""
    image = picture(63, 95)
    dark = image // 2
    images = [image, dark, image, dark]  # shown at 0, 100, 150 and 400 ms
    path = tmp_path / "a.mp4"
    write_pictures(
        path, images, codec="libx264", pixels="yuv444p10le", matrix=BT709, full=True, times=[0, 100, 150, 400]
    )
    prepared = Preparation(size=(96, 64), fit="stretch", fps=10).of(VideoFile.at(rotate(path, 90)))
    frames = prepared.read(range(prepared.num_frames))
    inside = np.rot90(flat(63, 95), -1)
    expected = [resize(np.rot90(x, -1)[None], 96, 64)[0] for x in (image, dark, image, dark, dark)]
    where = resize((255 * inside[..., None]).astype(np.uint8)[None], 96, 64)[0, ..., 0] == 255
    assert frames.shape == (5, 96, 64, 3) and where.mean() > 0.4
    for read, shown in zip(frames, expected, strict=True):  # nearest to 0, 100, 200, 300 and 400 ms
        assert np.abs(read.astype(int) - shown)[where].max() <= 3


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2)])
def test_png_frames_of_16_bits_keep_their_brightness(tmp_path: Path, color: int, channels: int) -> None:
    """Gray ones were white wherever they were not black: Pillow clips them."""
    gray = np.array([[0, 100, 200, 255]], np.uint16) * 257
    values = np.repeat(gray[..., None], channels, axis=2)
    if color == 4:
        values[..., 1] = 65535  # alpha
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 1, 16, color, 0, 0, 0)
    folder = tmp_path / "clip"
    folder.mkdir()
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "0.png").write_bytes(png)
    read = PngFolder(path=folder, name="clip").read([0])
    assert read[0, 0].tolist() == [[value] * 3 for value in (0, 100, 200, 255)]
