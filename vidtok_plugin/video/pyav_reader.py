"""A reader by PyAV, which finds frames by their times, from the previous key frame."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from vidtok_plugin.video.ffmpeg_errors import Log, logged_errors
from vidtok_plugin.video.kept_index import Version, find, keep, listing, seconds
from vidtok_plugin.video.listing import DamageError, Packet, cause_of, decoded, last_key, list_frames, open_container
from vidtok_plugin.video.unreadable import undecodable, unopenable

Fit = Callable[[np.ndarray], np.ndarray]  # maps uint8 frames (t, h, w, 3), each on its own


class PyavReader:
    """An open video file.

    Its packets are listed once, mostly without decoding, so that frames can be numbered by time. An error that FFmpeg
    reports for a frame, or for one that it refers to, is an error here, even if FFmpeg shows a frame.

    Raises:
        UnreadableVideoError: the file is not a video, is damaged or truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        version = Version.of(path)  # before it is opened: what is kept must not be that of an older one
        kept = find(version)
        self._container, self._stream = open_container(path)
        try:
            self.frames = list_frames(path, self._container, self._stream) if kept is None else kept.frames
            self.num_frames = self.frames.num_frames
            self.fps = self._rate()
        except BaseException:
            self._container.close()
            raise
        self.listing = listing(self.frames, self.fps, self._time_base) if kept is None else kept
        if kept is None:
            keep(version, self.listing)
        self._to_rgb = VideoReformatter()  # reused, since setting one up takes longer than decoding a frame
        self._logs: list[Log] = []
        self._decoder: Generator[tuple[Packet, av.VideoFrame], None, None] | None = None
        self._last = -1  # number of the last decoded frame

    @property
    def format(self) -> str:
        """FFmpeg's name of the container."""
        return self._container.format.name

    @property
    def codec(self) -> str:
        """FFmpeg's name of the decoder."""
        return self._stream.codec_context.name

    @property
    def pixels(self) -> str | None:
        """FFmpeg's name of the pixel format."""
        return self._stream.codec_context.pix_fmt

    @property
    def color_matrix(self) -> int:
        """FFmpeg's number of the conversion from YUV, as the file declares it."""
        return self._stream.codec_context.colorspace

    @property
    def stream_index(self) -> int:
        """The number of the video among the file's streams."""
        return self._stream.index

    @cached_property
    def turned_only(self) -> bool:
        """Whether the first frame's display matrix only turns, by a multiple of 90 degrees; decodes that frame once."""
        try:
            with logged_errors() as self._logs:
                matrix = _matrix(self._frame(0))
        except (av.FFmpegError, DamageError) as error:
            self._stop()
            raise undecodable(self.path, [0], self.num_frames, cause_of(error)) from None
        if matrix is None:
            return True
        a, b, c, d = matrix
        return (a, b) == (d, -c) and (a == 0 or b == 0)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames as they are read; decodes the first one once."""
        height, width = self.read([0]).shape[1:3]
        return height, width

    def _rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate:
            return float(rate)
        if self.frames.pts is None or self.num_frames == 1:
            raise unopenable(self.path, "it has neither a frame rate nor frame times")
        pts = self.frames.pts
        return (self.num_frames - 1) / (pts[-1] * self._time_base - pts[0] * self._time_base)

    def times(self) -> np.ndarray:
        """The times of the frames in seconds, float64 `(num_frames,)`, by the mean rate if the file has none."""
        return seconds(self.frames, self.fps, self._time_base)

    @property
    def _time_base(self) -> float:
        return float(self._stream.time_base or 1)

    def read(self, indices: Sequence[int], fit: Fit | None = None) -> np.ndarray:
        """Frames as uint8 RGB `(t, h, w, 3)`; `fit` is applied to each once decoded, to save memory."""
        pixels: dict[int, np.ndarray] = {}
        shapes: set[tuple[int, ...]] = set()
        try:
            with logged_errors() as self._logs:
                for index in sorted(set(indices)):
                    frame = self._rgb(self._frame(index))
                    shapes.add(frame.shape)
                    pixels[index] = frame if fit is None else np.ascontiguousarray(fit(frame[None])[0])
        except (av.FFmpegError, DamageError) as error:
            self._stop()
            raise undecodable(self.path, indices, self.num_frames, cause_of(error)) from None
        if len(shapes) > 1:
            raise undecodable(self.path, indices, self.num_frames, f"their sizes differ: {sorted(shapes)}")
        return np.stack([pixels[index] for index in indices])

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        pixels = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = _matrix(frame)
        return pixels if matrix is None else _displayed(pixels, matrix)

    def in_order(self) -> Iterator[np.ndarray]:
        """All frames, uint8 RGB `(h, w, 3)`; do not call `read` in between."""
        for index in range(self.num_frames):
            yield self.read([index])[0]

    def close(self) -> None:
        self._stop()
        self._container.close()

    def _logged(self) -> list[Log]:
        return self._logs

    def _stop(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None

    def _frame(self, index: int) -> av.VideoFrame:
        if not self.frames.seekable or self.frames.pts is None:
            return self._by_counting(index)
        reported: DamageError | None = None
        for start in self._starts(index):
            start()
            try:
                frame = self._decode_until(index)
            except DamageError as error:
                self._stop()
                if reported is not None and reported.packet == error.packet:  # wherever decoding starts
                    raise
                reported = error
                continue
            if frame is not None:
                return frame
        raise reported or DamageError("no frame has its time")

    def _starts(self, index: int) -> Iterator[Callable[[], None]]:
        """Ways to come to a frame: decode on, seek to one of two key frames, or decode from the first frame."""
        pts, keys = self.frames.pts, self.frames.keys
        assert pts is not None
        key = last_key(keys, pts[index])
        reached = pts[min(self._last + 1, index)]  # the next frame of the decoder
        if self._decoder is not None and self._last < index and (key < 0 or keys[key] <= reached):
            yield lambda: None
        if key >= 0:
            yield lambda: self._seek(keys[key])
        if key >= 1:  # some containers seek too far, and some frames refer to frames before a key frame
            yield lambda: self._seek(keys[key - 1])
        yield self._rewind

    def _seek(self, key: int) -> None:
        self._stop()
        self._container.seek(key, stream=self._stream)
        self._decoder, self._last = decoded(self._container, self._stream, self._logged, start=key), -1

    def _rewind(self) -> None:
        """Reopens the file, which reliably starts at the first frame."""
        self.close()
        self._container, self._stream = open_container(self.path)
        self._decoder, self._last = decoded(self._container, self._stream, self._logged), -1

    def _decode_until(self, index: int) -> av.VideoFrame | None:
        """The frame of that number; None if the decoder is past it."""
        assert self._decoder is not None and self.frames.pts is not None
        for packet, frame in self._decoder:
            if frame.pts is None or frame.pts < self.frames.pts[index]:
                continue
            if frame.pts > self.frames.pts[index]:
                break
            self._last = index
            return _intact(frame, packet)
        self._stop()
        return None

    def _by_counting(self, index: int) -> av.VideoFrame:
        if self._decoder is None or self._last >= index:
            self._rewind()
        assert self._decoder is not None
        for packet, frame in self._decoder:
            self._last += 1
            if self._last == index:
                return _intact(frame, packet)
        self._stop()
        raise DamageError("there are no more frames")


def _intact(frame: av.VideoFrame, packet: Packet) -> av.VideoFrame:
    if frame.is_corrupt:
        raise DamageError("its data is damaged", packet)
    return frame


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """The signs of (a, b, c, d) of a frame's display matrix, which maps (x, y) to (a x + c y, b x + d y)."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]
    if matrix is None:
        return None
    a, b, _, c, d = (int(np.sign(round(value / 65536, 3))) for value in np.frombuffer(bytes(matrix), "<i4")[:5])
    return (a, b, c, d) if any((a, b, c, d)) else None  # FFmpeg takes zeros for none


def _displayed(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels (h, w, 3) turned and mirrored by a display matrix."""
    a, b, c, d = matrix
    if (a == 0) != (d == 0) or (b == 0) != (c == 0) or (a == 0) == (b == 0):
        raise DamageError("it is rotated by an angle that is not a multiple of 90 degrees")
    if a == 0:  # x becomes y
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: d or 1, :: a or 1]
