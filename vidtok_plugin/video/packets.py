"""Digests of parts of a video file, by its packets: what is added to a file later doesn't change those of the rest."""

import hashlib
from contextlib import closing
from pathlib import Path

import av

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.video.listing import cause_of, demuxed, last_key, open_container
from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.reading import ReaderPool
from vidtok_plugin.video.unreadable import unopenable

_readers = ReaderPool(4)  # the episodes of a file are hashed one after another


def hash_frames(path: Path, first: int, count: int) -> str:
    """SHA-256 of the packets from which frames `first` to `first + count - 1` are decoded.

    If frames can't be found by their times, it is the hash of the whole file.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableVideoError: it is not a video, is damaged, or is shorter.
    """
    opened = _readers.reader(path, "pyav")
    assert isinstance(opened, PyavReader)
    frames = opened.frames
    if frames.num_frames < first + count:
        raise unopenable(path, f"it has {frames.num_frames} frames in place of at least {first + count}")
    if frames.pts is None or not frames.seekable or (key := last_key(frames.keys, frames.pts[first])) < 0:
        return hash_files(path)
    start, end = frames.keys[key], frames.pts[first + count - 1]
    digest = hashlib.sha256()
    container, stream = open_container(path)
    try:
        with container:
            digest.update(f"{stream.codec_context.name} ".encode())
            digest.update(stream.codec_context.extradata or b"")
            container.seek(start, stream=stream)
            with closing(demuxed(container, stream)) as packets:
                for packet in packets:
                    if packet.size and packet.pts is not None and start <= packet.pts <= end:
                        digest.update(f"{packet.pts - start} {packet.size} ".encode())
                        digest.update(bytes(packet))
                    if packet.dts is not None and packet.dts > end:
                        break
    except av.FFmpegError as error:
        raise unopenable(path, cause_of(error)) from None
    return digest.hexdigest()
