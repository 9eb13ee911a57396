"""Checks of a file against its container: lengths, chains of elements and checksums, which FFmpeg does not check."""

import mmap
import os
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vidtok_plugin.common.url_path import RangeFile, ranged

Buffer = mmap.mmap
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"

SEGMENT, CLUSTER, UNKNOWN = 0x18538067, 0x1F43B675, -1
LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469, 0xEC, 0xBF}
IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0xEC, 0xBF, 0xAF, 0x5854}
MP4_BOXES = {b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"sidx", b"mfra", b"styp", b"uuid"}
TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # size, and offset of the sync byte


def container_damage(path: str | os.PathLike[str], name: str) -> str | None:
    """What is wrong with a file of FFmpeg's container `name`; None if nothing is, or nothing is known about it.

    Reads the whole file, but only once for each version of it.

    Large mp4 files at URLs are read by range, other files there whole.
    """
    by_range = ranged(path) if name == MP4 else None
    if by_range is not None:
        return _mp4(by_range)
    status = os.stat(path)
    return _damage(os.fspath(path), name, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=100_000)
def _damage(path: str, name: str, mtime: int, size: int) -> str | None:
    check = _CHECKS.get(name)
    if check is None or size == 0:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return check(data)
        except IndexError:
            return "it ends within an element"


def _matroska(data: Buffer) -> str | None:
    _, body, end = _element(data, 0)  # the EBML header
    if end == UNKNOWN:
        return None
    identity, body, end = _element(data, end)
    if identity != SEGMENT:
        return "its segment is missing"
    if end > len(data):
        return f"it declares {end} bytes, but has {len(data)}"
    end = len(data) if end == UNKNOWN else end
    while body < end:
        start = body
        identity, inner, body = _element(data, body)
        if identity not in LEVEL_1 or body > end:
            return f"an unknown or too long element is at byte {start}"
        if body == UNKNOWN:  # of a live recording
            return None
        if data[inner : inner + 2] == b"\xbf\x84":
            with memoryview(data) as view:
                computed = zlib.crc32(view[inner + 6 : body])
            if computed != int.from_bytes(data[inner + 2 : inner + 6], "little"):
                return f"the checksum of its element at byte {start} is wrong"
        elif identity == CLUSTER:
            while inner < body:
                place = inner
                identity, _, inner = _element(data, inner)
                if identity not in IN_CLUSTER or inner == UNKNOWN or inner > body:
                    return f"an unknown or too long element is at byte {place}"
    return None


def _element(data: Buffer, start: int) -> tuple[int, int, int]:
    """An EBML element's id, and where its content starts and ends."""
    width = 9 - data[start].bit_length()
    if width > 4:
        return 0, start, start
    identity = int.from_bytes(data[start : start + width])
    start += width
    width = 9 - data[start].bit_length()
    if width > 8:
        return 0, start, start
    size = int.from_bytes(data[start : start + width]) & (1 << 7 * width) - 1
    start += width
    return identity, start, UNKNOWN if size == (1 << 7 * width) - 1 else start + size


def _avi(data: Buffer) -> str | None:
    start = 0
    while data[start : start + 4] == b"RIFF":
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if size == 0:  # written to a pipe
            return None
        end = start + 8 + size
        if end > len(data):
            return f"it declares {end} bytes, but has {len(data)}"
        start += 12
        while start + 8 <= end:
            if not _is_chunk(data, start):
                start -= 1  # some writers leave out the padding
            if not _is_chunk(data, start):
                return f"an unknown chunk is at byte {start}"
            size = int.from_bytes(data[start + 4 : start + 8], "little")
            inside = data[start : start + 4] == b"LIST" and data[start + 8 : start + 12] in (b"movi", b"rec ")
            start += 12 if inside else 8 + size + size % 2
        if start > end + 1:
            return f"its last chunk ends at byte {start}, after its end at {end}"
        start = end + end % 2
    return None


def _is_chunk(data: Buffer, start: int) -> bool:
    return data[start : start + 4].replace(b" ", b"").replace(b"_", b"").isalnum()


def _mp4(data: Buffer | RangeFile) -> str | None:
    start = 0
    while start + 8 <= len(data) and data[start + 4 : start + 8] in MP4_BOXES:
        size = int.from_bytes(data[start : start + 4])
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16])
        if size == 0:  # to the end of the file
            return None
        if size < 8:
            return f"a box of {size} bytes is at byte {start}"
        start += size
        if start > len(data):
            return f"it declares {start} bytes, but has {len(data)}"
    return None


def _flv(data: Buffer) -> str | None:
    start = int.from_bytes(data[5:9]) + 4
    while start < len(data):
        size = int.from_bytes(data[start + 1 : start + 4]) + 11
        if data[start] & 0x1F not in (8, 9, 18) or start + size + 4 > len(data):
            return f"an unknown or incomplete tag is at byte {start}"
        if int.from_bytes(data[start + size : start + size + 4]) != size:
            return f"the length of its tag at byte {start} is wrong"
        start += size + 4
    return None


def _gif(data: Buffer) -> str | None:
    def after_table(start: int, flags: int) -> int:
        return start + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    start = after_table(13, data[10])
    while data[start] != 0x3B:
        if data[start] == 0x21:
            start += 2
        elif data[start] == 0x2C:
            start = after_table(start + 10, data[start + 9])
            if not 1 <= data[start] <= 11:
                return f"the code size at byte {start} is wrong"
            start += 1
        else:
            return f"an unknown block is at byte {start}"
        while data[start]:
            start += 1 + data[start]
        start += 1
    return None


def _mpegts(data: Buffer) -> str | None:
    everything = np.frombuffer(data, np.uint8)
    try:
        for size, offset in TS_PACKETS:
            syncs = everything[offset::size]
            if (syncs[:5] == 0x47).all():
                wrong = np.flatnonzero(syncs != 0x47)
                if len(wrong):
                    return f"its packet {wrong[0]} has no sync byte"
                return f"its last packet is incomplete: {len(data)} bytes" if len(data) % size else None
        return "its first packets have no sync bytes"
    finally:
        del everything, syncs  # which would keep the file mapped


_CHECKS: dict[str, Callable[[Buffer], str | None]] = {
    "matroska,webm": _matroska,
    "avi": _avi,
    MP4: _mp4,
    "flv": _flv,
    "gif": _gif,
    "mpegts": _mpegts,
}
