"""Intact but unusual files: each frame that is asked for is the one that FFmpeg shows, with its right pixels."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_files import numbers, rotate, smooth_motion, write_file

from vidtok_plugin.video import read_frames
from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.reading import ReaderPool, open_video, probe

FRAMES = smooth_motion(30, height=64, width=96)
Make = Callable[[Path], Path]


def shown(path: Path) -> list[int]:
    """The numbers of the frames that FFmpeg shows, one after another."""
    with av.open(str(path), metadata_errors="replace") as file:
        return numbers(np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]))


def encoded(name: str, **settings: Any) -> Make:
    return lambda folder: write_file(folder / name, settings.pop("frames", FRAMES), **settings)


def muxed(path: Path, change: Callable[[av.Packet], bool], *, options: dict[str, str] | None = None) -> Path:
    """A copy of a file's packets as `path`: those for which `change` returns True, perhaps with other times."""
    whole = write_file(path.with_name(f"whole{path.suffix}"), FRAMES, b_frames=2, fps=24)
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None and change(packet):
                packet.stream = stream
                file.mux(packet)
    return path


def trimmed(folder: Path) -> Path:
    """What `ffmpeg -ss 0.75 -c copy` makes: the packets from the key frame before, and an edit list that skips some."""

    def change(packet: av.Packet) -> bool:
        shift = round(0.75 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet.pts >= -int(0.26 / packet.time_base)

    return muxed(folder / "a.mp4", change, options={"avoid_negative_ts": "disabled"})


def starting_in_between(folder: Path) -> Path:
    """A recording that starts after its key frame: FFmpeg shows it from the next one on."""
    return muxed(folder / "a.mkv", lambda packet: packet.dts is not None and packet.dts > 200)


def open_groups(folder: Path) -> Path:
    return write_file(folder / "a.mp4", FRAMES, b_frames=3, options={"x264-params": "open-gop=1:scenecut=0"})


def with_sound_first(folder: Path) -> Path:
    with av.open(str(folder / "a.mkv"), "w") as file:
        sound = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = file.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        for index, pixels in enumerate(FRAMES):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), format="s16", layout="mono")  # longer
            samples.sample_rate, samples.pts = 8000, 640 * index
            file.mux(sound.encode(samples))
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(video.encode(None))
        file.mux(sound.encode(None))
    return folder / "a.mkv"


def titled(folder: Path) -> Path:
    """With a title in Latin-1, which PyAV refused by an error that named no file."""
    with av.open(str(folder / "a.avi"), "w") as file:
        file.metadata["title"] = "cafeX"
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for pixels in FRAMES:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    data = (folder / "a.avi").read_bytes()
    (folder / "a.avi").write_bytes(data.replace(b"cafeX", "cafés"[:4].encode("latin-1") + b"X"))
    return folder / "a.avi"


ODD: dict[str, Make] = {
    "B-frames in AVI": encoded("a.avi", codec="mpeg4", b_frames=2),
    "H.264 with B-frames in AVI": encoded("a.avi", b_frames=2),
    "edit list": trimmed,
    "starts between key frames": starting_in_between,
    "open groups": open_groups,
    "open groups, H.265": encoded("a.mkv", codec="libx265", b_frames=2),
    "H.264 without a container": encoded("a.h264", b_frames=2),
    "transport stream": encoded("a.ts", b_frames=2),
    "MPEG-2 program stream": encoded("a.mpg", codec="mpeg2video", b_frames=2, fps=25),
    "interlaced": encoded("a.ts", codec="mpeg2video", fps=25, options={"flags": "+ilme+ildct"}),
    "VP8 with hidden frames": encoded("a.webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "9"}),
    "VP9 with hidden frames": encoded("a.webm", codec="libvpx-vp9", options={"auto-alt-ref": "1"}),
    "GIF": encoded("a.gif", codec="gif", pixels="rgb8"),
    "MJPEG": encoded("a.avi", codec="mjpeg", pixels="yuvj420p"),
    "FLV": encoded("a.flv", b_frames=2),
    "fragments": encoded("a.mp4", b_frames=2, container={"movflags": "frag_keyframe+empty_moov"}),
    "variable times": encoded("a.mp4", b_frames=2, times=[40 * i + (i > 12) * 700 for i in range(30)]),
    "negative times": encoded("a.mp4", b_frames=2, times=[40 * i - 500 for i in range(30)]),
    "one frame": encoded("a.mp4", frames=FRAMES[:1]),
    "60 fps": encoded("a.mkv", fps=60, b_frames=2),
    "odd size": encoded("a.mp4", frames=smooth_motion(9, height=63, width=95), pixels="yuv444p"),
    "10 bits": encoded("a.mp4", codec="libx265", pixels="yuv420p10le"),
    "alpha": encoded("a.mov", codec="png", pixels="rgba"),
    "intra refresh": encoded("a.mp4", keyframe_interval=30, options={"x264-params": "intra-refresh=1"}),
    "sound first": with_sound_first,
    "Latin-1 title": titled,
}


@pytest.mark.parametrize("kind", ODD)
def test_each_frame_is_the_one_that_ffmpeg_shows(kind: str, tmp_path: Path) -> None:
    """Numbers were shifted or files refused: AVI has no times of reordered frames, edit lists hide packets."""
    path = ODD[kind](tmp_path)
    expected, pool = shown(path), ReaderPool()
    if kind not in ("edit list", "starts between key frames", "negative times"):
        assert expected == list(range(len(expected)))
    assert numbers(read_frames(path, pool=ReaderPool())) == expected
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert [numbers(read_frames(path, [index], pool=pool))[0] for index in order] == [expected[i] for i in order]
    times = open_video(path).times()
    assert len(times) == len(expected) and (np.diff(times) > 0).all()


def test_packets_that_an_edit_list_hides_are_not_frames(tmp_path: Path) -> None:
    """They were counted as missing, and the file was refused as truncated."""
    path = trimmed(tmp_path)
    frames = numbers(read_frames(path))
    assert frames == shown(path) == list(range(frames[0], 30)) and frames[0] >= 18
    assert not PyavReader(path).frames.whole


MATRICES = {  # the matrix of a track's header, and the pixels that it shows
    "none": ([1, 0, 0, 1], lambda x: x),
    "mirrored": ([-1, 0, 0, 1], lambda x: x[:, :, ::-1]),
    "upside down, mirrored": ([1, 0, 0, -1], lambda x: x[:, ::-1]),
    "turned by 90": ([0, 1, -1, 0], lambda x: np.rot90(x, -1, axes=(1, 2))),
    "turned by 180": ([-1, 0, 0, -1], lambda x: x[:, ::-1, ::-1]),
    "turned by 270": ([0, -1, 1, 0], lambda x: np.rot90(x, 1, axes=(1, 2))),
    "transposed": ([0, 1, 1, 0], lambda x: x.swapaxes(1, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices_turn_and_mirror(name: str, tmp_path: Path) -> None:
    """A mirrored video was read as turned, and one upside down as upright."""
    matrix, displayed = MATRICES[name]
    path = write_file(tmp_path / "a.mp4", FRAMES[:3])
    upright = read_frames(path)
    rotate(path, matrix=matrix)
    np.testing.assert_array_equal(read_frames(path), displayed(upright))
    assert (probe(path).height, probe(path).width) == read_frames(path).shape[1:3]


def test_rotation_by_another_angle_is_refused(tmp_path: Path) -> None:
    path = rotate(write_file(tmp_path / "a.mp4", FRAMES[:3]), matrix=[0.7071, 0.7071, -0.7071, 0.7071])
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be decoded .*not a multiple of 90 degrees"):
        read_frames(path)


BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)


@pytest.mark.parametrize(("space", "weights"), [(1, BT709), (6, BT601)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv444p10le"])
def test_colors_follow_the_declared_matrix_and_range(
    tmp_path: Path, space: int, weights: tuple[float, float], full: bool, pixels: str
) -> None:
    y, u, v = 120, 90, 170
    path, depth = tmp_path / "a.mp4", 4 if "10" in pixels else 1
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 16, 16, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if full else 1
        frame = av.VideoFrame(16, 16, pixels)
        frame.colorspace, frame.color_range = space, 2 if full else 1
        for plane, value in zip(frame.planes, (y, u, v), strict=True):
            kind = np.uint16 if depth == 4 else np.uint8
            plane.update(np.full(plane.buffer_size // kind().itemsize, value * depth, kind).tobytes())
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    kr, kb = weights
    luma = y / 255 if full else (y - 16) / 219
    blue, red = ((value - 128) / (255 if full else 224) for value in (u, v))
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    expected = np.array([r, (luma - kr * r - kb * b) / (1 - kr - kb), b]) * 255
    assert np.abs(read_frames(path)[0, 8, 8] - expected).max() < 2.5


def test_pixels_that_are_not_square_are_read_as_stored(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for pixels in FRAMES[:5]:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    assert read_frames(tmp_path / "a.mp4").shape == (5, 64, 96, 3)
    assert numbers(read_frames(tmp_path / "a.mp4")) == list(range(5))


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    video = write_file(tmp_path / "video.mp4", FRAMES)
    cover = write_file(tmp_path / "cover.mov", 255 - FRAMES[:1], codec="png", pixels="rgb24")
    with av.open(str(video)) as one, av.open(str(cover)) as other, av.open(str(tmp_path / "a.mp4"), "w") as file:
        picture = file.add_stream_from_template(other.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        stream = file.add_stream_from_template(one.streams.video[0])
        for source, target in ((other, picture), (one, stream)):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = target
                    file.mux(packet)
    assert numbers(read_frames(tmp_path / "a.mp4")) == list(range(30))
