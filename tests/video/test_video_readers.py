"""decord, torchcodec and PyAV read the same frames, and damaged files are errors, not wrong frames."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from natural_clips import natural_clip
from torchcodec_tests import TORCHCODEC
from video_files import (
    cut_off,
    moving_noise,
    numbers,
    overwrite,
    rotate,
    smooth_motion,
    write_faststart,
    write_file,
)

from vidtok_plugin.video import UnreadableVideoError, probe, pyav_reader, read_frames, write_video
from vidtok_plugin.video.decord_reader import DecordReader, decord_or_none
from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.reading import ReaderName, ReaderPool, count_frames, open_video, read_in_order

FRAMES = moving_noise(50, height=48, width=64)
IRREGULAR = np.cumsum([0, *np.random.default_rng(1).integers(10, 90, 49)]).tolist()


def constant(folder: Path) -> Path:
    return write_file(folder / "a.mp4", FRAMES)


def b_frames(folder: Path) -> Path:
    return write_file(folder / "a.mp4", FRAMES, b_frames=3)


def variable(folder: Path) -> Path:
    return write_file(folder / "a.mkv", FRAMES, b_frames=2, times=IRREGULAR)


def variable_mp4(folder: Path) -> Path:
    return write_file(folder / "a.mp4", FRAMES, b_frames=2, times=IRREGULAR)


def ours(folder: Path) -> Path:
    write_video(folder / "a.mp4", FRAMES, fps=12.5)
    return folder / "a.mp4"


def rotated(folder: Path) -> Path:
    return rotate(write_file(folder / "a.mp4", FRAMES), 90)


def natural(name: str) -> Callable[[Path], Path]:
    return lambda folder: natural_clip(name)


@pytest.mark.parametrize(
    "make",
    [constant, b_frames, variable_mp4, ours, rotated, natural("carphone_pristine.mp4"), natural("bikes.mp4")],
)
@pytest.mark.parametrize("reader", ["decord", TORCHCODEC])
def test_readers_return_the_same_frames(make: Callable[[Path], Path], reader: ReaderName, tmp_path: Path) -> None:
    """Rounding in the conversion from YUV could differ; it does not with FFmpeg 4 in decord and 8 in PyAV."""
    path = make(tmp_path)
    other, pyav = open_video(path, reader), PyavReader(path)
    assert not isinstance(other, PyavReader) and (pyav.num_frames, pyav.fps) == (other.num_frames, other.fps)
    last = pyav.num_frames - 1
    for indices in ([last], [0, 1, 2], [last - 2, 3, 17], [13, 13, 40], list(range(11, 26)), [0, last]):
        one, two = other.read(indices), pyav.read(indices)
        assert one.shape == two.shape
        assert np.abs(one.astype(int) - two).max() <= (3 if reader == "decord" else 0), indices
    np.testing.assert_allclose(other.times(), pyav.times())


@pytest.fixture(scope="module")
def large_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = moving_noise(150, height=256, width=256)
    return write_file(tmp_path_factory.mktemp("large") / "a.mp4", frames, keyframe_interval=16)


@pytest.mark.parametrize("reader", ["decord", "pyav", TORCHCODEC])
def test_nothing_is_decoded_after_a_read(reader: ReaderName, large_video: Path) -> None:
    """decord decoded on to the end of the file in the background: 480 frames for a clip of 17."""
    opened = open_video(large_video, reader)
    start = time.process_time()
    opened.read(range(150))
    whole = time.process_time() - start
    opened.read(range(20, 37))
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.25 * whole
    opened.close()


@pytest.mark.parametrize("make", [constant, b_frames, variable, rotated])
def test_pyav_reads_any_frame_as_in_order(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    in_order = np.concatenate(list(read_in_order(path, 7, reader="pyav")))
    assert len(in_order) == 50
    for indices in ([49], [23, 24, 25], [48, 3, 17], [7, 7], list(range(50))):
        np.testing.assert_array_equal(read_frames(path, indices, reader="pyav"), in_order[indices])


def test_pyav_does_not_seek_to_a_key_frame_that_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to seek at every key frame."""
    starts: list[int] = []
    decoded = pyav_reader.decoded
    monkeypatch.setattr(pyav_reader, "decoded", lambda *where, **start: (starts.append(1), decoded(*where, **start))[1])
    opened = PyavReader(write_file(tmp_path / "a.mp4", FRAMES, keyframe_interval=12))
    opened.read(range(5, 42))
    assert len(starts) == 1
    opened.read([42, 43, 49])
    assert len(starts) == 2  # to 48, the last key frame before 49
    opened.close()


@pytest.mark.parametrize("reader", ["decord", "pyav", TORCHCODEC])
def test_fit_is_applied_to_each_decoded_frame(tmp_path: Path, reader: ReaderName) -> None:
    path, indices = b_frames(tmp_path), [7, 30, 7, 12]
    whole = read_frames(path, indices, reader=reader)
    blocks: list[int] = []

    def fit(frames: np.ndarray) -> np.ndarray:
        blocks.append(len(frames))
        return 255 - frames[:, :8]

    np.testing.assert_array_equal(read_frames(path, indices, reader=reader, fit=fit), 255 - whole[:, :8])
    assert reader == "decord" or blocks == [1, 1, 1]


def test_a_video_marked_as_rotated_is_rotated(tmp_path: Path) -> None:
    upright = read_frames(constant(tmp_path))
    info = probe(rotate(tmp_path / "a.mp4", 90))
    assert (info.height, info.width) == (64, 48)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.mp4"), np.rot90(upright, -1, axes=(1, 2)))


@pytest.mark.parametrize(("codec", "ending"), [("mpeg1video", "mpg"), ("mpeg4", "avi"), ("libvpx", "webm")])
def test_frames_of_other_containers_are_read_as_written(tmp_path: Path, codec: str, ending: str) -> None:
    frames = natural_frames()
    path = write_file(tmp_path / f"a.{ending}", frames, codec=codec)
    for indices in ([0], [29], [14, 3], list(range(30))):
        read = read_frames(path, indices, pool=ReaderPool())
        own = np.abs(read.astype(int) - frames[indices]).mean(axis=(1, 2, 3))
        others = np.abs(read.astype(int) - frames[[(index + 9) % 30 for index in indices]]).mean(axis=(1, 2, 3))
        assert (own < 12).all() and (own < others / 1.5).all(), (own, others)


def test_decord_reads_only_where_it_is_exact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It returned other frames without an error: of .mpg, where it finds no times, and of open groups of pictures."""
    for path in (write_file(tmp_path / "a.mpg", FRAMES, codec="mpeg1video"), h265(tmp_path)):
        with pytest.raises(UnreadableVideoError, match=r"cannot be read exactly by decord: it is .* in .*reader=auto"):
            DecordReader(path)
        caplog.clear()
        assert isinstance(open_video(path, "decord"), PyavReader)
        assert "PyAV reads in place of decord" in caplog.text and str(path) in caplog.text
    assert [numbers(read_frames(path, [k], reader="decord"))[0] for k in range(40)] == list(range(40))
    assert isinstance(open_video(constant(tmp_path), "decord"), DecordReader)


def test_decord_does_not_read_mirrored_videos(tmp_path: Path) -> None:
    """It gave their frames as they are stored."""
    path = rotate(constant(tmp_path), matrix=[-1, 0, 0, 1])
    assert isinstance(open_video(path, "decord"), PyavReader)
    assert isinstance(open_video(rotate(path, 180), "decord"), DecordReader)


def h265(folder: Path) -> Path:
    """H.265 with open groups of pictures, the default of x265."""
    return write_file(folder / "h265.mp4", smooth_motion(40, height=64, width=96), codec="libx265", b_frames=2)


def natural_frames() -> np.ndarray:
    return read_frames(natural_clip("bikes.mp4"), range(0, 240, 8))[:, :128, :160]


def test_decord_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = constant(tmp_path)
    expected = read_frames(path, [3, 40])
    monkeypatch.setitem(sys.modules, "decord", None)
    decord_or_none.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"needs the package decord; run: pip install 'vidtok-plugin\[decord\]'"):
            open_video(path, "decord")
        assert isinstance(open_video(path), PyavReader)
        assert np.abs(read_frames(path, [3, 40], pool=ReaderPool()).astype(int) - expected).max() <= 3
        assert count_frames(path) == 50
    finally:
        decord_or_none.cache_clear()


@pytest.mark.parametrize("reader", ["auto", "decord", "pyav", TORCHCODEC])
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_a_video_truncated_after_its_index_is_an_error(tmp_path: Path, fraction: float, reader: str) -> None:
    """Its index declares more frames than it has."""
    path = cut_off(write_faststart(tmp_path / "a.mp4", FRAMES), fraction)
    with pytest.raises(UnreadableVideoError, match=r"a\.mp4 cannot be read: .*\(.+\); remove or replace it\."):
        open_video(path, reader)  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", ["auto", "decord", "pyav", TORCHCODEC])
def test_damaged_frames_are_errors_and_the_others_are_right(tmp_path: Path, reader: str) -> None:
    """The first damaged frame may decode without an error, since only its end is noise."""
    path = write_faststart(tmp_path / "a.mp4", FRAMES)
    whole = read_frames(path, reader="pyav")
    overwrite(path, 0.5, 0.6)
    failed, wrong = [], []
    for index in range(50):
        try:
            frame = read_frames(path, [index], reader=reader)[0]  # type: ignore[arg-type]
        except UnreadableVideoError as error:
            assert f"cannot be decoded at frames {index}..{index}" in str(error)
            failed.append(index)
        else:
            if np.abs(frame.astype(int) - whole[index]).max() > 3:
                wrong.append(index)
    assert len(failed) >= 4 and 49 not in failed
    if reader != "decord":  # its thread decodes ahead, so frames before the damage may fail, too
        assert failed[0] > 12 and len(failed) <= 20
    assert len(wrong) <= 1 and all(index + 1 in failed for index in wrong), (wrong, failed)
    with pytest.raises(UnreadableVideoError, match="cannot be decoded at frames"):
        list(read_in_order(path, 16, reader=reader))  # type: ignore[arg-type]


def test_files_without_video_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("1\n00:00:01,000 --> 00:00:02,000\nno video\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, cause in (("notes", r"\(.+\)"), ("empty", "the file is empty"), ("folder", "is a folder")):
        with pytest.raises(UnreadableVideoError, match=rf"{name}\.mp4 .*{cause}"):
            read_frames(tmp_path / f"{name}.mp4")
    with pytest.raises(ValueError, match="reader must be one of auto, decord, pyav, torchcodec, got 'opencv'"):
        open_video(tmp_path / "notes.mp4", "opencv")  # type: ignore[arg-type]
