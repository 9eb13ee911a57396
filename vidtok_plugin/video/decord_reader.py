"""Frames of one open video file by decord, where it is installed, with what goes wrong there said in one sentence."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from vidtok_plugin.video.pyav_reader import Fit, packet_times
from vidtok_plugin.video.unreadable import undecodable, unopenable

LONGEST = 1e9  # seconds; decord takes missing times for numbers beyond


@cache
def decord_or_none() -> ModuleType | None:
    """The decord package, None where it isn't installed."""
    try:
        import decord
    except ModuleNotFoundError as error:
        if error.name != "decord":
            raise
        return None
    decord.logging.set_level(decord.logging.QUIET)  # its lines name no file; the errors raised here do
    return decord


class DecordReader:
    """An open video file.

    Raises:
        UnreadableVideoError: the file is no video, is damaged, or has no times that decord understands: it would give
            wrong frames then, as it does for MPEG program streams (.mpg).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        decord = decord_or_none()
        if decord is None:
            raise ValueError("reader=decord needs the package decord; pip install decord, or set reader=auto.")
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
        starts = self._reader.get_frame_timestamp(list(range(self.num_frames)))[:, 0]
        if np.abs(starts).max() > LONGEST:
            raise unopenable(path, "decord finds no times in it")

    def times(self) -> np.ndarray:
        """The frames' times in seconds, float64 `(num_frames,)`: the file's own, which decord rounds to float32.

        Raises:
            UnreadableVideoError: the file doesn't tell them for every frame.
        """
        times = packet_times(self.path, self.fps)
        if len(times) != self.num_frames:
            raise unopenable(
                self.path, f"of its {self.num_frames} frames {len(times)} have times; without fps they aren't needed"
            )
        return times

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`, with which `fit` is done."""
        try:
            self._reader.seek(0)  # without it, a read after one that ended near the file's end may give wrong frames
            frames = self._batch(indices)
            # decord has queued more packets than the batch took, half a file's on average, and its thread would go on
            # decoding them: four times the work where clips come from many files.
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
        """All frames, uint8 RGB `(h, w, 3)`; once, and not while others are read."""
        for index in range(self.num_frames):
            try:
                yield _without_padding(self._reader.next().asnumpy())
            except StopIteration:
                raise undecodable(self.path, [index], self.num_frames, "there are no more") from None
            except self._errors as error:
                raise undecodable(self.path, [index], self.num_frames, _cause(error)) from None

    def close(self) -> None:
        self._reader = None


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """A frame `(h, w, 3)`, where decord 0.6 takes the padding of rows for channels.

    FFmpeg pads rows to a multiple of some bytes; where that is a multiple of the width, which happens at
    widths such as 16, 24, 48 and 72, decord gives `(h, w, c)` with c > 3, and its get_batch fails.
    """
    height, width, channels = frame.shape
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def _cause(error: Exception) -> str:
    """The sentence in decord's message, without its stack trace, times and source lines."""
    text = str(error).split("Stack trace")[0].strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    sentence = first.rsplit("Check failed:", 1)[-1]
    sentence = re.sub(r"^(\[[\d:]+\]\s*|/?[\w/.]+\.cc:\d+:\s*|Error:\s*)+", "", sentence.strip())
    return sentence.strip().rstrip(".") or type(error).__name__
