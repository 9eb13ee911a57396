"""Frames of one open video file by PyAV, each found by its time from the key frame before it."""

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

Fit = Callable[[np.ndarray], np.ndarray]  # what is done with uint8 frames (t, h, w, 3), each on its own, once read


class PyavReader:
    """An open video file.

    Its packets are listed once, without decoding them, so that a frame's number is its place in the order of times.

    Raises:
        UnreadableVideoError: the file is no video, is damaged or cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._container, self._stream = _open(path)
        self._stream.codec_context.thread_count = 1  # as many workers read at once
        try:
            pts, keys = _packets(self._container, self._stream)
        except av.FFmpegError as error:
            raise unopenable(path, _cause(error)) from None
        self.num_frames = len(pts)
        said = self._stream.frames  # 0 where the container doesn't say
        if self.num_frames == 0:
            raise unopenable(path, "it has no frames")
        if self.num_frames < said:
            raise unopenable(path, f"it says that it has {said} frames, but ends after {self.num_frames}")
        # Without times frames are counted from the first on.
        self._pts = sorted(known) if _distinct(known := [p for p in pts if p is not None], len(pts)) else None
        self._keys = sorted(keys)
        self.fps = self._rate()
        self._to_rgb = VideoReformatter()  # a frame's own is set up anew for each: longer than decoding it
        self._frames: Generator[av.VideoFrame, None, None] | None = None  # what the decoder gives next
        self._last = -1  # number of the frame that it gave last

    def _rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate:
            return float(rate)
        if self._pts is None or self.num_frames == 1:
            raise unopenable(self.path, "it tells neither its frame rate nor its frames' times")
        return float((self.num_frames - 1) / (_seconds(self._pts, 0, self._stream, 0.0)[[0, -1]] @ [-1, 1]))

    def times(self) -> np.ndarray:
        """The frames' times in seconds, float64 `(num_frames,)`; at the mean rate if the file doesn't tell them."""
        return _seconds(self._pts, self.num_frames, self._stream, self.fps)

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`; `fit` is done with each as it comes, so that large ones don't add up."""
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
        """All frames, uint8 RGB `(h, w, 3)`; once, and not while others are read."""
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
        key = bisect_right(self._keys, self._pts[index]) - 1  # the last key frame that isn't after it
        reached = self._pts[min(self._last + 1, index)]  # what the decoder comes to next
        if self._frames is not None and self._last < index and (key < 0 or self._keys[key] <= reached):
            frame = self._decode_until(index)
            if frame is not None:
                return frame
        for before in (0, 1):  # some containers seek to after the time that is asked for
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
            raise _MissingFrameError("there is no frame at its time")
        return frame

    def _rewind(self) -> None:
        """Opens the file anew, which starts at its first frame for certain."""
        self.close()
        self._container, self._stream = _open(self.path)
        self._stream.codec_context.thread_count = 1
        self._frames, self._last = _decoded(self._container, self._stream), -1

    def _decode_until(self, index: int) -> av.VideoFrame | None:
        """The frame of that number, None if the decoder is beyond it already."""
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
        raise _MissingFrameError("there are no more")


class _MissingFrameError(Exception):
    pass


def packet_times(path: str | os.PathLike[str], fps: float) -> np.ndarray:
    """The times of all frames in seconds, float64 `(num_frames,)`; at the rate `fps` if the file doesn't tell them."""
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
        raise unopenable(path, "there is no video in it")
    return container, container.streams.video[0]


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[int | None], list[int]]:
    """The times of all packets that become frames, and those of key frames, in the stream's time base."""
    pts: list[int | None] = []
    keys: list[int] = []
    with closing(_demuxed(container, stream)) as packets:
        for packet in packets:
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise av.error.InvalidDataError(0, f"its packet {len(pts)} is cut off or damaged")
            pts.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
    return pts, keys


def _demuxed(container: av.container.InputContainer, stream: av.VideoStream) -> Generator[av.Packet, None, None]:
    """The stream's packets, from a generator of PyAV's, which loses memory if it is left unfinished and not closed."""
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
        raise _MissingFrameError("its data are damaged")
    return frame


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__
