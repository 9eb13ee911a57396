"""Writing frames to video files, to learn from or for people to watch, which appear only once complete."""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from vidtok_plugin.common.atomic_files import naming, partial_path, put_in_place
from vidtok_plugin.common.folder_lock import lock_file
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.video.reading import close_readers

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # FFmpeg's names, by suffix
CLOCK = 90_000  # ticks a second, of times that are given


class VideoWriter:
    """Writes uint8 RGB frames `(h, w, 3)` or blocks of them `(t, h, w, 3)` to an mp4, mov or mkv file, by its suffix.

    H.264 at full chroma resolution (yuv444p, since yuv420p visibly changes colors at 64x64 pixels), without B-frames
    and with a key frame every `keyframe_interval` frames, so that random clips are cheap to read: a recording, to learn
    from. Until the writer closes without an error, the file has a hidden temporary name in the same folder.

    playable: for people to watch: yuv420p, which QuickTime, browsers and phones need. Frames of an odd height or width
        get a copy of their last row or column, since yuv420p has even sizes only.
    reproducible: the same frames always give the same bytes. Otherwise a few files in a hundred differ, by how x264's
        assembly for trees of macroblocks reads memory; without these trees, files are larger.

    The temporary file exists from the start, so that a place that cannot be written is refused before any work.

    Raises:
        ValueError: a setting is out of range, the output is a folder, or another process is writing it.
        OSError: the file cannot be written.

    Example:
        >>> with VideoWriter("clip.mp4", fps=30) as writer:   # doctest: +SKIP
        ...     writer.write(np.zeros((17, 64, 64, 3), np.uint8))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float,
        crf: int = 10,
        keyframe_interval: int = 16,
        threads: int = 1,
        playable: bool = False,
        reproducible: bool = False,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"VideoWriter: fps must be above 0, got {fps}.")
        if not 0 <= crf <= 51:
            raise ValueError(f"VideoWriter: crf must be in 0..51 (0 is best), got {crf}.")
        self.path = as_path(path)
        if self.path.is_dir():
            raise ValueError(
                f"VideoWriter: the output must be a file, got the folder {path}; give a name such as out.mp4."
            )
        if self.path.suffix.lower() not in CONTAINERS:
            raise ValueError(
                f"VideoWriter: the output must end in one of {', '.join(CONTAINERS)}, got {self.path.name}; give a name"
                " such as out.mp4."
            )
        self.num_frames = 0
        self._playable = playable
        self._fps = Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
        if reproducible:
            self._options["x264-params"] = "mbtree=0"
        self._keyframe_interval = keyframe_interval
        self._threads = threads
        self._partial = partial_path(self.path)
        with naming(self.path):
            self._lock = lock_file(self._partial, what=str(self.path))
        self._first_time: float | None = None  # seconds; None: a constant rate
        self._last_tick = -1
        self._file: BinaryIO | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def write(self, frames: np.ndarray, times: Sequence[float] | None = None) -> None:
        """Appends frames, all of the same size; at the constant rate `fps`, or each at its time.

        times: seconds, increasing, counted from the first frame's; for all frames of the file or for none.
        """
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3:
            raise ValueError(
                f"VideoWriter: frames must be uint8 of shape (t, h, w, 3), got {frames.dtype} of {frames.shape}."
            )
        frames = frames if frames.ndim == 4 else frames[None]
        if self._playable:
            frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
        if self.num_frames and (times is None) != (self._first_time is None):
            raise ValueError(f"VideoWriter: times must be given for all frames of {self.path} or for none.")
        if times is not None and len(times) != len(frames):
            raise ValueError(f"VideoWriter: times must be one for each of {len(frames)} frames, got {len(times)}.")
        if times is not None and self._first_time is None:
            self._first_time = float(times[0])
        with naming(self.path):
            self._write(frames, times)

    def _write(self, frames: np.ndarray, times: Sequence[float] | None) -> None:
        container, stream = self._open(height=frames.shape[1], width=frames.shape[2])
        if (stream.height, stream.width) != frames.shape[1:3]:
            raise ValueError(
                f"VideoWriter: all frames of {self.path} must be {stream.height}x{stream.width} like the first,"
                f" got {frames.shape[1]}x{frames.shape[2]}."
            )
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = self._tick(None if times is None else times[index])
            container.mux(stream.encode(frame))
            self.num_frames += 1

    def _tick(self, time: float | None) -> int:
        """When the next frame is shown, in the stream's time base."""
        if time is None or self._first_time is None:
            return self.num_frames
        tick = round((time - self._first_time) * CLOCK)
        if tick <= self._last_tick:
            raise ValueError(f"VideoWriter: times of {self.path} must increase, got {time} s after the one before.")
        self._last_tick = tick
        return tick

    def _open(self, *, height: int, width: int) -> tuple[av.container.OutputContainer, av.VideoStream]:
        if self._container is None or self._stream is None:
            # A file of ours: PyAV leaves its own open if the header cannot be written.
            self._file = self._partial.open("wb")
            self._container = av.open(self._file, "w", format=CONTAINERS[self.path.suffix.lower()])
            self._stream = self._container.add_stream("libx264", rate=self._fps, options=self._options)
            self._stream.height, self._stream.width = height, width
            self._stream.pix_fmt = "yuv420p" if self._playable else "yuv444p"
            if self._playable:
                _declare_colors(self._stream.codec_context)
            base = 1 / self._fps if self._first_time is None else Fraction(1, CLOCK)
            self._stream.time_base = self._stream.codec_context.time_base = base
            self._stream.codec_context.gop_size = self._keyframe_interval
            self._stream.codec_context.thread_count = self._threads
        return self._container, self._stream

    def close(self) -> None:
        """Completes the file and renames it to `path`. After an error nothing is left."""
        try:
            if self._container is None or self._stream is None:
                raise ValueError(f"VideoWriter: no frames were written to {self.path}; write at least one.")
            with naming(self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                assert self._file is not None
                self._file.close()
                if sys.platform == "win32":
                    close_readers()  # Windows replaces no file that is open
                put_in_place(self._partial, self.path)
        except BaseException:
            self.discard()
            raise
        self._unlock()

    def discard(self) -> None:
        """Closes and removes the unfinished file."""
        try:
            for opened in (self._container, self._file):
                if opened is not None:
                    with suppress(av.FFmpegError, OSError):  # such as a full disk, where it cannot be completed
                        opened.close()
        finally:
            self._partial.unlink(missing_ok=True)
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _declare_colors(codec: av.VideoCodecContext) -> None:
    """What swscale writes: BT.601's matrix and limited range, for which players would otherwise guess by the size."""
    codec.color_range = ColorRange.MPEG
    codec.colorspace = Colorspace.ITU601
    codec.color_primaries = ColorPrimaries.BT709  # those of sRGB
    codec.color_trc = ColorTrc.BT709


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float,
    crf: int = 10,
    playable: bool = False,
) -> None:
    """Writes uint8 RGB frames `(t, h, w, 3)`, or an iterable of frames or blocks of frames; see `VideoWriter`."""
    with VideoWriter(path, fps=fps, crf=crf, playable=playable) as writer:
        for block in [frames] if isinstance(frames, np.ndarray) else frames:
            writer.write(block)
