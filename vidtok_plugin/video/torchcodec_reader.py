"""A reader by torchcodec, if that is installed, for the files of which it gives the frames that are asked for."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache, cached_property
from importlib import import_module
from typing import Any

import numpy as np

from vidtok_plugin.video.exactness import inexact_cause, not_exact
from vidtok_plugin.video.listing import MATROSKA, MP4
from vidtok_plugin.video.pyav_reader import Fit, PyavReader
from vidtok_plugin.video.unreadable import undecodable, unopenable

CONTAINERS = {MP4: "mp4", MATROSKA: "mkv"}
PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")  # it interpolates the colors of 10 bits


@cache
def torchcodec_decoder() -> Any:
    """torchcodec's VideoDecoder.

    Raises:
        ValueError: torchcodec is not installed, or cannot load FFmpeg or PyTorch.
    """
    try:
        return import_module("torchcodec.decoders").VideoDecoder
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchcodec":
            raise
        raise ValueError(
            "reader=torchcodec needs the package torchcodec; run: pip install 'vidtok-plugin[torchcodec]', or set"
            " reader=auto."
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"reader=torchcodec: torchcodec cannot load its libraries ({_missing_library(error)}); install FFmpeg 4 to"
            " 8 (on Debian: apt install ffmpeg) and the torchcodec that fits this PyTorch, or set reader=auto."
        ) from None


class TorchcodecReader:
    """An open video file.

    Raises:
        UnreadableVideoError: the file is not a video or is damaged.
        NotExactError: torchcodec may give other frames of it than those asked for.
        ValueError: torchcodec is not installed, or cannot load FFmpeg or PyTorch.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        decoder = torchcodec_decoder()
        with closing(PyavReader(path)) as exact:
            cause = inexact_cause(exact, containers=CONTAINERS, pixels=PIXELS)
            self._times, self.fps, stream = exact.times(), exact.fps, exact.stream_index
        if cause is not None:
            raise not_exact(path, "torchcodec", cause)
        self.path = path
        try:
            self._decoder: Any = decoder(
                os.fspath(path), stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, device="cpu"
            )
        except (RuntimeError, ValueError) as error:
            raise unopenable(path, _cause(error)) from None
        self.num_frames = len(self._decoder)
        if self.num_frames != len(self._times):
            raise not_exact(path, "torchcodec", f"it finds {self.num_frames} frames, FFmpeg {len(self._times)}")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames as they are read; decodes the first one once."""
        height, width = self.read([0]).shape[1:3]
        return height, width

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`, by PyAV."""
        return self._times

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`; `fit` is applied to each once decoded, to save memory."""
        pixels: dict[int, np.ndarray] = {}
        shapes: set[tuple[int, ...]] = set()
        try:
            for index in sorted(set(indices)):
                frame = self._decoder[index].numpy()
                shapes.add(frame.shape)
                pixels[index] = frame if fit is None else np.ascontiguousarray(fit(frame[None])[0])
        except RuntimeError as error:
            raise undecodable(self.path, indices, self.num_frames, _cause(error)) from None
        if len(shapes) > 1:
            raise undecodable(self.path, indices, self.num_frames, f"their sizes differ: {sorted(shapes)}")
        return np.stack([pixels[index] for index in indices])

    def in_order(self) -> Iterator[np.ndarray]:
        """All frames, uint8 RGB `(h, w, 3)`; do not call `read` in between."""
        for index in range(self.num_frames):
            yield self.read([index])[0]

    def close(self) -> None:
        self._decoder = None


def _cause(error: Exception) -> str:
    """The sentence in torchcodec's message, without function, source file and line."""
    return re.sub(r"^\w+, \S+:\d+, ", "", str(error).strip().splitlines()[0]).rstrip(". ") or type(error).__name__


def _missing_library(error: Exception) -> str:
    """The library that is missing: torchcodec tries each version of FFmpeg, of which one at most is installed."""
    causes = re.findall(r"OSError: (?!Could not load)(.+)", str(error)) or [
        str(error.__cause__ or error).split("\n")[0]
    ]
    return next((cause for cause in causes if not cause.startswith("libav")), causes[0])
