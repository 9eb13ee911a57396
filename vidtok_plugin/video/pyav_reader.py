"""A reader by PyAV, which finds frames by their times, from the previous key frame."""

import os
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidtok_plugin.video.unreadable import undecodable, unopenable

Fit = Callable[[np.ndarray], np.ndarray]  # maps uint8 frames (t, h, w, 3), each on its own


class PyavReader:
    """An open video file.

    All packets are listed once, without decoding, so that frames can be numbered by time.

    Raises:
        UnreadableVideoError: the file is not a video, is damaged or truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._container, self._stream = _open(path)
        self._stream.codec_context.thread_count = 1  # workers read in parallel
        try:
            pts, keys = _packets(self._container, self._stream)
        except av.FFmpegError as error:
            raise unopenable(path, _cause(error)) from None
        self.num_frames = len(pts)
        declared = self._stream.frames  # 0 if the container doesn't declare it
        if self.num_frames == 0:
            raise unopenable(path, "it has no frames")
        if self.num_frames < declared:
            raise unopenable(path, f"it declares {declared} frames, but ends after {self.num_frames}")
        # None: frames have no distinct times and are counted from the first.
        self._pts = sorted(known) if _distinct(known := [p for p in pts if p is not None], len(pts)) else None
        self._keys = sorted(keys)
        self.fps = self._rate()
        self._to_rgb = VideoReformatter()  # reused, since setting one up takes longer than decoding a frame
        self._frames: Generator[av.VideoFrame, None, None] | None = None  # the decoder's output
        self._last = -1  # number of the last decoded frame

    def _rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate:
            return float(rate)
        if self._pts is None or self.num_frames == 1:
            raise unopenable(self.path, "it has neither a frame rate nor frame times")
        return float((self.num_frames - 1) / (_seconds(self._pts, 0, self._stream, 0.0)[[0, -1]] @ [-1, 1]))

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`, by the mean rate if the file has none."""
        return _seconds(self._pts, self.num_frames, self._stream, self.fps)

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`; `fit` is applied to each once decoded, to save memory."""
        pixels: dict[int, np.ndarray] = {}
        shapes: set[tuple[int, ...]] = set()
        try:
            for index in sorted(set(indices)):
                frame = self._rgb(self._frame(index))
                shapes.add(frame.shape)
                pixels[index] = frame if fit is None else np.ascontiguousarray(fit(frame[None])[0])
        except (av.FFmpegError, _MissingFrameError) as error:
            self._stop()
            raise undecodable(self.path, indices, self.num_frames, _cause(error)) from None
        if len(shapes) > 1:
            raise undecodable(self.path, indices, self.num_frames, f"their sizes differ: {sorted(shapes)}")
        return np.stack([pixels[index] for index in indices])

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        pixels = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels

    def in_order(self) -> Iterator[np.ndarray]:
        """All frames, uint8 RGB `(h, w, 3)`; do not call `read` in between."""
        for index in range(self.num_frames):
            yield self.read([index])[0]

    def close(self) -> None:
        self._stop()
        self._container.close()

    def _stop(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None

    def _frame(self, index: int) -> av.VideoFrame:
        if self._pts is None:
            return self._by_counting(index)
        key = bisect_right(self._keys, self._pts[index]) - 1  # the last key frame up to it
        reached = self._pts[min(self._last + 1, index)]  # the next frame of the decoder
        if self._frames is not None and self._last < index and (key < 0 or self._keys[key] <= reached):
            frame = self._decode_until(index)
            if frame is not None:
                return frame
        for before in (0, 1):  # some containers seek too far
            if key >= before:
                self._stop()
                self._container.seek(self._keys[key - before], stream=self._stream)
                self._frames = _decoded(self._container, self._stream)
                frame = self._decode_until(index)
                if frame is not None:
                    return frame
        self._rewind()
        frame = self._decode_until(index)
        if frame is None:
            raise _MissingFrameError("no frame has its time")
        return frame

    def _rewind(self) -> None:
        """Reopens the file, which reliably starts at the first frame."""
        self.close()
        self._container, self._stream = _open(self.path)
        self._stream.codec_context.thread_count = 1
        self._frames, self._last = _decoded(self._container, self._stream), -1

    def _decode_until(self, index: int) -> av.VideoFrame | None:
        """The frame of that number; None if the decoder is past it."""
        assert self._frames is not None and self._pts is not None
        for frame in self._frames:
            if frame.pts is None or frame.pts < self._pts[index]:
                continue
            if frame.pts > self._pts[index]:
                break
            self._last = index
            return _intact(frame)
        self._stop()
        return None

    def _by_counting(self, index: int) -> av.VideoFrame:
        if self._frames is None or self._last >= index:
            self._rewind()
        assert self._frames is not None
        for frame in self._frames:
            self._last += 1
            if self._last == index:
                return _intact(frame)
        self._stop()
        raise _MissingFrameError("there are no more frames")


class _MissingFrameError(Exception):
    pass


def packet_times(path: str | os.PathLike[str], fps: float) -> np.ndarray:
    """The times of all frames in seconds, float64 `(num_frames,)`; at the rate `fps` if the file has none."""
    container, stream = _open(path)
    with container:
        try:
            pts, _ = _packets(container, stream)
        except av.FFmpegError as error:
            raise unopenable(path, _cause(error)) from None
        known = [p for p in pts if p is not None]
        return _seconds(sorted(known) if _distinct(known, len(pts)) else None, len(pts), stream, fps)


def _open(path: str | os.PathLike[str]) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        container = av.open(os.fspath(path))
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        raise unopenable(path, _cause(error)) from None
    if not container.streams.video:
        container.close()
        raise unopenable(path, "it has no video stream")
    return container, container.streams.video[0]


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[int | None], list[int]]:
    """The times of all packets with frames, and of key frames, in the stream's time base."""
    pts: list[int | None] = []
    keys: list[int] = []
    with closing(_demuxed(container, stream)) as packets:
        for packet in packets:
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise av.error.InvalidDataError(0, f"its packet {len(pts)} is truncated or damaged")
            pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
    return pts, keys


def _demuxed(container: av.container.InputContainer, stream: av.VideoStream) -> Generator[av.Packet, None, None]:
    """The packets of the stream. PyAV's generator leaks memory unless it is exhausted or closed."""
    return cast("Generator[av.Packet, None, None]", container.demux(stream))


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Generator[av.VideoFrame, None, None]:
    with closing(_demuxed(container, stream)) as packets:
        for packet in packets:
            yield from packet.decode()


def _distinct(known: Sequence[int], num_frames: int) -> bool:
    ordered = sorted(known)
    return len(ordered) == num_frames and all(a < b for a, b in pairwise(ordered))


def _seconds(pts: Sequence[int] | None, num_frames: int, stream: av.VideoStream, fps: float) -> np.ndarray:
    if pts is None:
        return np.arange(num_frames) / fps
    return np.array(pts, np.float64) * float(stream.time_base or 1)


def _intact(frame: av.VideoFrame) -> av.VideoFrame:
    if frame.is_corrupt:
        raise _MissingFrameError("its data is damaged")
    return frame


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__
