"""Which files other decoders read as PyAV does; those that they don't, PyAV reads in their place."""

import os
from collections.abc import Container, Mapping

from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.unreadable import UnreadableVideoError


class NotExactError(UnreadableVideoError):
    """A decoder may give other frames of a video than those asked for."""


def not_exact(path: str | os.PathLike[str], reader: str, cause: str) -> NotExactError:
    """The error for a file that a reader may not read as PyAV does."""
    return NotExactError(f"Video {path} cannot be read exactly by {reader}: {cause}; set reader=auto.")


def inexact_cause(
    video: PyavReader,
    *,
    containers: Mapping[str, str],
    pixels: Container[str | None],
    matrices: Container[int] | None = None,
) -> str | None:
    """Why a decoder may give other frames of an open video than PyAV, or conceal its damage; None if it doesn't.

    containers: FFmpeg's names of those in which it is exact for H.264, and their short names.
    pixels, matrices: FFmpeg's formats of pixels and numbers of color matrices that it converts likewise.
    """
    if video.format not in containers or video.codec != "h264":
        names = " and ".join(containers.values())
        return f"it is {video.codec} in {video.format}; it is exact for H.264 in {names} only"
    if not (video.frames.seekable and video.frames.closed and video.frames.whole):
        return "it has an edit list, or frames that refer to others before a key frame"
    if video.pixels not in pixels or (matrices is not None and video.color_matrix not in matrices):
        return f"its colors are {video.pixels} by FFmpeg's matrix {video.color_matrix}"
    if not video.turned_only:
        return "its display matrix mirrors it, or turns it by an angle that is not a multiple of 90 degrees"
    return None
