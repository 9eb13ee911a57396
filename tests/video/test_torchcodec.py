"""torchcodec gives PyAV's frames of every odd file: it reads those of which it does, and PyAV the others."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_odd_videos import FRAMES, MATRICES, ODD
from torchcodec_tests import needs_torchcodec
from video_files import rotate, write_file

from vidtok_plugin.video.clip_reader import ClipReader
from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.reading import open_video
from vidtok_plugin.video.torchcodec_reader import TorchcodecReader, torchcodec_decoder
from vidtok_plugin.video.video_file import VideoFile

READ = {"starts between key frames", "variable times", "one frame", "60 fps", "odd size", "fragments"}
READ |= {"intra refresh", "sound first"}


@needs_torchcodec
@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_each_odd_file_is_read_as_by_pyav(kind: str, tmp_path: Path) -> None:
    """torchcodec itself stops at edit lists and transport streams, and is up to 39 levels off in colors of 10 bits."""
    path = ODD[kind](tmp_path)
    opened, pyav = open_video(path, "torchcodec"), PyavReader(path)
    assert isinstance(opened, TorchcodecReader) == (kind in READ)
    assert (opened.num_frames, opened.fps, opened.size) == (pyav.num_frames, pyav.fps, pyav.size)
    np.testing.assert_array_equal(opened.times(), pyav.times())
    expected = pyav.read(range(pyav.num_frames))
    np.testing.assert_array_equal(np.stack(list(opened.in_order())), expected)
    for index in np.random.default_rng(0).permutation(len(expected)).tolist():
        np.testing.assert_array_equal(opened.read([index])[0], expected[index])
    opened.close()


@needs_torchcodec
@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices_turn_and_mirror(name: str, tmp_path: Path) -> None:
    """torchcodec itself turns, but does not mirror."""
    path = rotate(write_file(tmp_path / "a.mp4", FRAMES[:3]), matrix=MATRICES[name][0])
    opened = open_video(path, "torchcodec")
    assert isinstance(opened, TorchcodecReader) == (name == "none" or name.startswith("turned"))
    np.testing.assert_array_equal(opened.read(range(3)), PyavReader(path).read(range(3)))


@needs_torchcodec
@pytest.mark.slow
@pytest.mark.parametrize(("matrix", "name"), [(1, "bt709"), (6, "smpte170m"), (9, "bt2020nc")])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuvj444p", "yuv420p10le"])
def test_colors_are_those_of_pyav(pixels: str, matrix: int, name: str, tmp_path: Path) -> None:
    options = {"x264-params": f"colormatrix={name}"}
    path = write_file(tmp_path / "a.mkv", FRAMES[:3], pixels=pixels, options=options)
    pyav = PyavReader(path)
    assert (pyav.pixels, pyav.color_matrix) == (pixels, matrix)
    opened = open_video(path, "torchcodec")
    assert isinstance(opened, TorchcodecReader) == (pixels != "yuv420p10le")
    np.testing.assert_array_equal(opened.read(range(3)), pyav.read(range(3)))


@needs_torchcodec
@pytest.mark.slow
def test_a_reader_process_imports_torchcodec_before_the_first_call(tmp_path: Path) -> None:
    """Its import of PyTorch takes seconds, which are not those of the first video."""
    episode = VideoFile.at(write_file(tmp_path / "a.mp4", FRAMES), "torchcodec")
    clips = ClipReader(reader="torchcodec", timeout=60.0)
    assert clips.process is not None
    with clips.process as process:
        assert "torchcodec.decoders" in process.call("hanging_reader:loaded_modules")
        read = clips.frames(episode, [3, 17], 64, 96)
    np.testing.assert_array_equal(read, PyavReader(episode.path).read([3, 17]))


def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)


def test_torchcodec_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "a.mp4", FRAMES[:3])
    without_torchcodec(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    torchcodec_decoder.cache_clear()
    try:
        for use in (lambda: open_video(path, "torchcodec"), lambda: ClipReader(reader="torchcodec")):
            with pytest.raises(
                ValueError, match=r"the package torchcodec; run: pip install 'vidtok-plugin\[torchcodec\]'"
            ):
                use()
        assert open_video(path).num_frames == 3
    finally:
        torchcodec_decoder.cache_clear()


LOADING = """Could not load libtorchcodec. Likely causes:
FFmpeg version 5:
OSError: {five}
OSError: Could not load this library: /x/libtorchcodec_core5.so
FFmpeg version 4:
OSError: libavutil.so.56: cannot open shared object file: No such file or directory
"""


@pytest.mark.parametrize(
    ("five", "named"),
    [
        ("libavutil.so.57: cannot open shared object file", "libavutil.so.57: cannot open shared object file"),
        ("libnvrtc.so.13: cannot open shared object file", "libnvrtc.so.13: cannot open shared object file"),
    ],
)
def test_a_library_that_torchcodec_lacks_is_named(
    five: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchcodec 0.14 to 0.17 from PyPI need CUDA on Linux, and their error was one of 150 lines."""
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text(f"raise RuntimeError({LOADING.format(five=five)!r})")
    without_torchcodec(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    torchcodec_decoder.cache_clear()
    try:
        with pytest.raises(ValueError, match=rf"cannot load its libraries \({named}\); install FFmpeg .*reader=auto"):
            torchcodec_decoder()
    finally:
        torchcodec_decoder.cache_clear()
