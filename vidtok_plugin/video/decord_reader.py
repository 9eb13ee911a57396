"""A reader by decord, if that is installed, for the files of which it gives the frames that are asked for."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np

from vidtok_plugin.video.exactness import inexact_cause, not_exact
from vidtok_plugin.video.listing import MP4
from vidtok_plugin.video.pyav_reader import Fit, PyavReader
from vidtok_plugin.video.unreadable import undecodable, unopenable

CONTAINERS = {MP4: "mp4"}  # tried with numbered frames; in codecs other than H.264 it shows damaged pictures
PIXELS = ("yuv420p", "yuv444p")
UNSPECIFIED, BT470, SMPTE170 = 2, 5, 6  # FFmpeg's numbers of color matrices that are, or are taken for, BT.601


@cache
def decord_or_none() -> ModuleType | None:
    """The decord package; None if it is not installed."""
    try:
        import decord
    except ModuleNotFoundError as error:
        if error.name != "decord":
            raise
        return None
    decord.logging.set_level(decord.logging.QUIET)  # its log lines don't name the file; our errors do
    return decord


class DecordReader:
    """An open video file.

    Raises:
        UnreadableVideoError: the file is not a video or is damaged.
        NotExactError: decord may give other frames of it than those asked for.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        decord = decord_or_none()
        if decord is None:
            raise ValueError(
                "reader=decord needs the package decord; run: pip install 'vidtok-plugin[decord]', or set reader=auto."
            )
        with closing(PyavReader(path)) as exact:
            matrices = (UNSPECIFIED, BT470, SMPTE170)
            cause = inexact_cause(exact, containers=CONTAINERS, pixels=PIXELS, matrices=matrices)
            self._times = exact.times()
        if cause is not None:
            raise not_exact(path, "decord", cause)
        self.path = path
        self._errors = (decord.DECORDError, RuntimeError, IndexError)
        try:
            self._reader: Any = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise unopenable(path, _cause(error)) from None
        self.num_frames = len(self._reader)
        if self.num_frames == 0:
            raise unopenable(path, "it has no frames")
        self.fps = float(self._reader.get_avg_fps())
        if self.num_frames != len(self._times):
            raise not_exact(path, "decord", f"it finds {self.num_frames} frames, FFmpeg {len(self._times)}")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames as they are read; decodes the first one once."""
        height, width = self.read([0]).shape[1:3]
        return height, width

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`, by PyAV, since decord rounds to float32."""
        return self._times

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`, mapped by `fit`."""
        try:
            self._reader.seek(0)  # otherwise a read after one near the end of the file may return wrong frames
            frames = self._batch(indices)
            # decord has queued more packets than the batch needed, half a file's on average. Its thread would go on
            # decoding them, which is four times the work when clips come from many files.
            self._reader.seek(0)
        except self._errors as error:
            raise undecodable(self.path, indices, self.num_frames, _cause(error)) from None
        return frames if fit is None else fit(frames)

    def _batch(self, indices: Sequence[int]) -> np.ndarray:
        try:
            return self._reader.get_batch(list(indices)).asnumpy()
        except self._errors as error:
            if "from_size == to_size" not in str(error):
                raise
        return np.stack([_without_padding(self._reader[index].asnumpy()) for index in indices])

    def in_order(self) -> Iterator[np.ndarray]:
        """All frames, uint8 RGB `(h, w, 3)`; do not call `read` in between."""
        for index in range(self.num_frames):
            try:
                yield _without_padding(self._reader.next().asnumpy())
            except StopIteration:
                raise undecodable(self.path, [index], self.num_frames, "there are no more frames") from None
            except self._errors as error:
                raise undecodable(self.path, [index], self.num_frames, _cause(error)) from None

    def close(self) -> None:
        self._reader = None


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """A frame `(h, w, 3)`, also where decord 0.6 takes the padding of rows for channels.

    FFmpeg pads rows to a multiple of some number of bytes. If that is a multiple of the width, as for widths of 16, 24,
    48 and 72, decord returns `(h, w, c)` with c > 3, and its get_batch fails.
    """
    height, width, channels = frame.shape
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def _cause(error: Exception) -> str:
    """The sentence in decord's message, without stack trace, time and source line."""
    text = str(error).split("Stack trace")[0].strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    sentence = first.rsplit("Check failed:", 1)[-1]
    sentence = re.sub(r"^(\[[\d:]+\]\s*|/?[\w/.]+\.cc:\d+:\s*|Error:\s*)+", "", sentence.strip())
    return sentence.strip().rstrip(".") or type(error).__name__
