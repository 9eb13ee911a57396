"""Numbering the frames of a file: by its packets, without decoding, or where these don't tell, by decoding it once."""

import os
from bisect import bisect_right
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import av

from vidtok_plugin.common.url_path import ranged
from vidtok_plugin.video.containers import container_damage
from vidtok_plugin.video.ffmpeg_errors import Log, first_error, logged_errors
from vidtok_plugin.video.unreadable import UnreadableVideoError, unopenable

MATROSKA, FLV, MP4, AVI = "matroska,webm", "flv", "mov,mp4,m4a,3gp,3g2,mj2", "avi"
STREAMED = ("mpegts", "mpeg")  # a packet may be one of the two fields of a frame
MPEG4 = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3")
TINY = 8  # bytes; an MPEG-4 packet this small repeats a frame, and FFmpeg does not show it again
VPX_ZEROS = bytes(128)  # the arithmetic coder of VP8 and VP9 never writes so many
SLACK = 0.25  # seconds that a file may end before its declared duration, which some writers round up

Packet = tuple[int | None, int | None]  # pts and dts


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The frames of a file, in the order in which FFmpeg shows them, with times in the stream's time base."""

    num_frames: int
    pts: list[int] | None  # increasing; None: frames have no distinct times
    keys: list[int]  # times of key frames, increasing, including those that are not shown
    seekable: bool  # whether a frame is found by its time after seeking, or only by counting from the first
    closed: bool  # no frame is shown before a key frame that precedes it in the file
    whole: bool  # every packet is shown; not so with an edit list


class DamageError(Exception):
    """The decoder or the container reports damage at a packet."""

    def __init__(self, cause: str, packet: Packet = (None, None)) -> None:
        super().__init__(cause)
        self.packet = packet


def open_container(path: str | os.PathLike[str]) -> tuple[av.container.InputContainer, av.VideoStream]:
    """An open file, and its first video that is not a cover picture, with one decoding thread."""
    try:
        file: Any = ranged(path)  # to be read by range
        container = av.open(os.fspath(path) if file is None else file, metadata_errors="replace")
    except FileNotFoundError:
        raise
    except (av.FFmpegError, UnicodeError) as error:
        raise unopenable(path, cause_of(error)) from None
    pictures = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        container.close()
        raise unopenable(path, "it has no video stream")
    if streams[0].codec_context is None:
        container.close()
        raise UnreadableVideoError(
            f"Video {path} cannot be decoded: the FFmpeg in PyAV has no decoder for its codec; install a PyAV that has "
            "it, or re-encode the video."
        )
    streams[0].codec_context.thread_count = 1  # workers read in parallel
    return container, streams[0]


def list_frames(path: str | os.PathLike[str], container: av.container.InputContainer, stream: av.VideoStream) -> Frames:
    """Numbers the frames of a file that was just opened, and checks it against its container.

    Raises:
        UnreadableVideoError: it is damaged or truncated, or has no frames.
    """
    cause = container_damage(path, container.format.name)
    if cause is not None:
        raise unopenable(path, cause)
    with logged_errors() as logs:
        try:
            frames = _Packets(container, stream, logs).frames()
            return _decode_all(path, frames) if frames.pts is None or not frames.seekable else frames
        except (av.FFmpegError, DamageError) as error:
            raise unopenable(path, cause_of(error)) from None


def demuxed(container: av.container.InputContainer, *streams: av.stream.Stream) -> Generator[av.Packet, None, None]:
    """The packets of streams. PyAV's generator leaks memory unless it is exhausted or closed."""
    return cast("Generator[av.Packet, None, None]", container.demux(*streams))


def cause_of(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.FFmpegError) else str(error)) or type(error).__name__


class _Packets:
    """All packets of a video."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, logs: list[Log]) -> None:
        self.format, self.codec, self.stream = container.format.name, stream.codec_context.name, stream
        self.pts: list[int | None] = []  # of shown packets
        self.keys: list[int] = []
        self.count, self.end, self.last_dts = 0, 0.0, 0
        self.odd = self.format in STREAMED and stream.codec_context.field_order not in (0, 1)
        self.closed = True
        in_mp4 = len(stream.index_entries) if self.format == MP4 else 0
        timed = self.format in (MATROSKA, FLV)  # whose duration is compared with all streams
        others = container.streams.audio if timed else ()
        with closing(demuxed(container, stream, *others)) as packets:
            for packet in packets:
                if packet.size == 0:
                    continue
                if timed and packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self.end = max(self.end, end)
                if packet.stream_index == stream.index:
                    self._add(packet)
        error = first_error([log for log in logs if log[1] != self.codec], container)  # decoding tells of the codec's
        if error is not None:
            raise DamageError(error)
        self._check_length(container, in_mp4)

    def _add(self, packet: av.Packet) -> None:
        number, self.count = self.count, self.count + 1
        if packet.is_corrupt:
            raise DamageError(f"its packet {number} is truncated or damaged")
        if packet.is_keyframe and packet.pts is not None:
            self.keys.append(packet.pts)
        self.last_dts = packet.dts if packet.dts is not None else self.last_dts
        if self.codec in ("vp8", "vp9", "libvpx", "libvpx-vp9"):
            data = bytes(packet)
            if VPX_ZEROS in data:
                raise DamageError(f"its packet {number} has a run of zeros, as of a lost sector")
            self.odd |= self.codec in ("vp8", "libvpx") and not data[0] & 16  # not shown
        if packet.is_discard:  # before or after an edit list's part
            return
        self.pts.append(packet.pts)
        if packet.pts is None or not self.keys:
            self.odd = True
        else:
            self.closed &= packet.pts >= self.keys[-1]
            self.odd |= packet.pts < self.keys[0]  # FFmpeg does not show it
        self.odd |= self.format == AVI and packet.pts != packet.dts  # AVI has no times of frames that are reordered
        self.odd |= self.codec in MPEG4 and packet.size <= TINY

    def _check_length(self, container: av.container.InputContainer, in_mp4: int) -> None:
        declared = self.stream.frames
        if self.format == MP4 and in_mp4:  # after edit lists
            declared = max(declared, in_mp4) if self.count < in_mp4 else 0
        elif self.format == AVI:  # whose frames may be empty packets
            lacking = (self.stream.duration or 0) - 1 - self.last_dts
            declared = self.count + lacking if lacking > 0 else 0
        if self.count < declared:
            raise DamageError(f"it declares {declared} frames, but ends after {self.count}")
        if self.format in (MATROSKA, FLV) and container.duration is not None:
            duration = container.duration / av.time_base
            if self.end < duration - SLACK:
                raise DamageError(f"it declares {duration:.3f} s, but ends after {self.end:.3f} s")

    def frames(self) -> Frames:
        if self.count == 0:
            raise DamageError("it has no frames")
        pts = _increasing(sorted(p for p in self.pts if p is not None))
        complete = pts is not None and len(pts) == len(self.pts) > 0
        return Frames(
            num_frames=len(self.pts),
            pts=pts if complete else None,
            keys=sorted(self.keys),
            seekable=complete and not self.odd,
            closed=self.closed,
            whole=len(self.pts) == self.count,
        )


def _decode_all(path: str | os.PathLike[str], listed: Frames) -> Frames:
    """The frames that FFmpeg shows."""
    container, stream = open_container(path)
    with container, logged_errors() as logs:
        shown: list[int | None] = []
        for packet, frame in decoded(container, stream, lambda: logs):
            if frame.is_corrupt:
                raise DamageError("its data is damaged", packet)
            shown.append(frame.pts)
        known = [p for p in shown if p is not None]
        in_order = _increasing(known) if len(known) == len(shown) else None
        times = _increasing(sorted(known)) if len(known) == len(shown) else None
        if not shown:
            raise DamageError("it has no frames")
        return Frames(
            num_frames=len(shown),
            pts=times,
            keys=listed.keys,
            seekable=in_order is not None and container.format.name != AVI,
            closed=False,
            whole=False,
        )


def decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    logged: Callable[[], list[Log]],
    start: int | None = None,
) -> Generator[tuple[Packet, av.VideoFrame], None, None]:
    """The frames from here on, each with the packet that completed it.

    `logged` gives the list to which errors are now logged. They are raised, except for packets shown before `start`,
    the key frame that was sought: these may refer to earlier frames.

    Raises:
        DamageError: FFmpeg reports an error.
    """
    with closing(demuxed(container, stream)) as packets:
        while True:
            logs = logged()
            del logs[:]
            place: Packet = (None, None)
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                place = (packet.pts, packet.dts)
                frames = packet.decode()
                error = first_error(logs, container) if logs else None
            except av.FFmpegError as failed:
                frames, error = [], cause_of(failed)
            if error is not None and not (start is not None and place[0] is not None and place[0] < start):
                raise DamageError(error, place)
            for frame in frames:
                yield place, frame


def _increasing(ordered: list[int]) -> list[int] | None:
    return ordered if all(a < b for a, b in pairwise(ordered)) else None


def last_key(keys: list[int], time: int) -> int:
    """The number of the last key frame up to a time; -1 if there is none."""
    return bisect_right(keys, time) - 1
