"""Damaged files of many formats are errors that name file, cause and remedy, not wrong or fewer frames."""

from collections.abc import Callable
from pathlib import Path

import av
import damaged_videos
import numpy as np
import pytest
from video_files import cut_off, moving_noise, smooth_motion, write_file

from vidtok_plugin.video import UnreadableVideoError, read_frames
from vidtok_plugin.video.ffmpeg_errors import logged_errors
from vidtok_plugin.video.reading import ReaderPool, count_frames

FRAMES = smooth_motion(60, height=64, width=96)


def zero(path: Path, start: float, length: int) -> Path:
    data = bytearray(path.read_bytes())
    place = int(len(data) * start)
    data[place : place + length] = bytes(length)
    path.write_bytes(data)
    return path


def flip(path: Path, start: float) -> Path:
    data = bytearray(path.read_bytes())
    data[int(len(data) * start)] ^= 4
    path.write_bytes(data)
    return path


def insert(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"other bytes" + data[len(data) // 2 :])
    return path


DAMAGE: dict[str, tuple[str, Callable[[Path], Path], str]] = {  # format, damage, cause
    "cut mkv": ("mkv_h264", lambda path: cut_off(path, 0.6), "it declares .* bytes, but has"),
    "cut webm": ("webm_vp9", lambda path: cut_off(path, 0.6), "it declares .* bytes, but has"),
    "cut ts": ("ts_h264", lambda path: cut_off(path, 0.613), "its last packet is incomplete"),
    "cut gif": ("gif", lambda path: cut_off(path, 0.6), "ends within an element"),
    "cut avi": ("avi_mjpeg", lambda path: cut_off(path, 0.6), "it declares .* bytes, but has"),
    "cut flv": ("flv_h264", lambda path: cut_off(path, 0.6), "incomplete tag"),
    "bit in mkv": ("mkv_h265", lambda path: flip(path, 0.5), "the checksum of its element at byte"),
    "sector of webm": ("webm_vp8", lambda path: zero(path, 0.5, 512), "run of zeros|unknown or too long"),
    "sector of ts": ("ts_h264", lambda path: zero(path, 0.5, 512), "no sync byte"),
    "bytes in avi": ("avi_mjpeg", insert, "unknown chunk|declares .* bytes"),
    "bytes in gif": ("gif", insert, "unknown block|ends within|code size"),
    "bytes in flv": ("flv_h264", insert, "tag"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_that_ffmpeg_passes_over_is_an_error(kind: str, tmp_path: Path) -> None:
    """These were read as fewer or other frames, in silence."""
    name, damage, cause = DAMAGE[kind]
    path = damage(damaged_videos.make(name, tmp_path, FRAMES))
    with pytest.raises(
        UnreadableVideoError, match=rf"Video {path} cannot be read: .*({cause}).*; remove or replace it"
    ):
        count_frames(path)


def test_an_mkv_file_without_sizes_is_compared_with_its_duration(tmp_path: Path) -> None:
    """One of 200 frames, cut after 88, was tokenized as 88."""
    path = write_file(tmp_path / "a.mkv", FRAMES, b_frames=2)
    data = bytearray(path.read_bytes())
    place = data.index(bytes.fromhex("18538067")) + 4
    data[place : place + 8] = b"\x01" + b"\xff" * 7  # the segment's size is unknown, as in a recording to a pipe
    path.write_bytes(data)
    assert len(read_frames(path)) == 60
    path.write_bytes(data[: data.rindex(bytes.fromhex("1f43b675"), 0, int(len(data) * 0.8))])  # before a cluster
    with pytest.raises(UnreadableVideoError, match=r"a\.mkv cannot be read: .*it declares 2\.0.. s, but ends after 1"):
        read_frames(path)


def test_errors_that_the_decoder_conceals_are_errors(tmp_path: Path) -> None:
    """FFmpeg logs them and goes on with guessed pixels."""
    path = write_file(tmp_path / "a.mp4", moving_noise(30, height=64, width=64), codec="mjpeg", pixels="yuvj420p")
    intact, data = read_frames(path), bytearray(path.read_bytes())
    place = data.index(b"\xff\xda", len(data) // 2) + 40  # within the pixels of a picture
    data[place : place + 120] = b"\xff\xd9" * 60  # which ends too early
    path.write_bytes(data)
    wrong = failed = 0
    for index in range(30):
        try:
            wrong += bool((read_frames(path, [index], pool=ReaderPool()) != intact[index]).any())
        except UnreadableVideoError as error:
            failed += 1
            assert f"a.mp4 cannot be decoded at frames {index}..{index}" in str(error) and "FFmpeg's mjpeg" in str(
                error
            )
    assert failed == 1 and wrong == 0


def test_a_repeated_error_is_reported_each_time(tmp_path: Path) -> None:
    """PyAV hides a message that equals the last."""
    for _ in range(2):
        with logged_errors() as logs:
            av.logging.log(av.logging.ERROR, "test", "the same")
        assert logs == [(av.logging.ERROR, "test", "the same")]
    assert av.logging.get_level() is None and av.logging.get_skip_repeated()


@pytest.mark.slow
def test_seeded_damage_is_silent_only_where_no_decoder_can_notice_it(capsys: pytest.CaptureFixture[str]) -> None:
    """24 files of each of 12 formats: 123 of 288 were other or fewer frames in silence."""
    results = damaged_videos.main(["--each", "24"])
    for name, found in results.items():
        assert found.counts.total() - found.counts["noticed"] == 24, name
        assert not any(found.counts[what] for what in ("noticed", "nameless", "crash", "hang")), (name, found.silent)
        assert all(line.startswith("flipped_bit") for line in found.silent), (name, found.silent)


def test_damage_is_the_same_for_a_seed() -> None:
    data = bytes(range(256)) * 16
    for kind in damaged_videos.KINDS:
        one, two = (damaged_videos.damage(data, kind, np.random.default_rng(7)) for _ in range(2))
        assert one == two != data
