"""The frames of a clip are those nearest in time at its frame rate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchcodec_tests import TORCHCODEC
from video_files import moving_noise, write_file

from vidtok_plugin.video import ClipDataset, find_sources, read_frames
from vidtok_plugin.video.sampling import ClipFrames, IndexedVideo
from vidtok_plugin.video.video_file import VideoFile


def video(times: np.ndarray) -> IndexedVideo:
    return IndexedVideo.timed(VideoFile.at(Path("a.mp4")), np.asarray(times, float))


def constant(num_frames: int, rate: float) -> IndexedVideo:
    return video(np.arange(num_frames) / rate)


def test_a_rate_samples_the_nearest_frames() -> None:
    assert ClipFrames(clip_length=4, fps=3).indices(constant(40, 30), 5) == [5, 15, 25, 35]
    assert ClipFrames(clip_length=6, fps=8).indices(constant(40, 30), 0) == [0, 4, 7, 11, 15, 19]  # 3.75 apart
    assert ClipFrames(clip_length=4, fps=20).indices(constant(40, 30), 0) == [
        0,
        1,
        3,
        4,
    ]  # a tie: the earlier one


def test_frames_of_a_slower_video_repeat() -> None:
    assert ClipFrames(clip_length=6, fps=30).indices(constant(10, 10), 2) == [2, 2, 3, 3, 3, 4]


@given(rate=st.floats(1, 120), fraction=st.floats(0.05, 1), start=st.integers(0, 50))
def test_no_frame_repeats_unless_the_video_is_slower(rate: float, fraction: float, start: int) -> None:
    indices = ClipFrames(clip_length=9, fps=rate * fraction).indices(constant(400, rate), start)
    assert len(set(indices)) == 9 and indices[0] == start and list(indices) == sorted(indices)


@given(rate=st.sampled_from([8.0, 24000 / 1001, 25.0, 30000 / 1001, 60.0]), rounding=st.sampled_from([0, 3]))
def test_a_video_at_the_target_rate_keeps_its_frames(rate: float, rounding: int) -> None:
    """Some containers round times to 1 ms."""
    times = np.arange(60) / rate
    one = video(times.round(rounding) if rounding else times)
    frames = ClipFrames(clip_length=17, fps=rate)
    assert frames.num_starts(one) == 44
    assert all(frames.indices(one, start) == list(range(start, start + 17)) for start in range(44))
    assert frames.starts(one) == ClipFrames(clip_length=17).starts(one) == [0, 17, 34]


def test_a_variable_rate_is_sampled_by_its_times() -> None:
    stalls = video(np.array([0, 0.1, 0.2, 0.9, 1.0, 1.1]))
    frames = ClipFrames(clip_length=5, fps=5)
    assert frames.indices(stalls, 0) == [0, 2, 2, 3, 3]  # at 0, 0.2, 0.4, 0.6, 0.8 s
    assert frames.num_starts(stalls) == 3  # starting at 0.9 s, it would end at 1.7 s
    assert frames.starts(stalls) == [0]


def test_a_clip_ends_within_the_video() -> None:
    for num_frames, starts in ((20, 0), (21, 1), (22, 2)):
        assert ClipFrames(clip_length=3, fps=3).num_starts(constant(num_frames, 30)) == starts
    assert ClipFrames(clip_length=1, fps=3).num_starts(constant(1, 30)) == 1
    assert ClipFrames(clip_length=2, fps=3).num_starts(video([0.0])) == 0
    assert ClipFrames(clip_length=3, frame_interval=4).num_starts(constant(9, 30)) == 1


def test_invalid_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="fps=3 and frame_interval=2 exclude each other"):
        ClipFrames(clip_length=3, frame_interval=2, fps=3)
    with pytest.raises(ValueError, match="fps must be above 0, got -1"):
        ClipFrames(clip_length=3, fps=-1)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 1"):
        ClipFrames(clip_length=0)


@pytest.mark.parametrize(("ending", "b_frames"), [("mp4", 0), ("mkv", 2)])
@pytest.mark.parametrize("reader", ["decord", "pyav", TORCHCODEC])
def test_clips_of_a_variable_rate_file_are_its_nearest_frames(
    tmp_path: Path, ending: str, b_frames: int, reader: str
) -> None:
    times = np.cumsum([0, *np.random.default_rng(2).integers(10, 90, 59)])  # ms
    path = write_file(tmp_path / f"a.{ending}", moving_noise(60), times=times.tolist(), b_frames=b_frames)
    frames = torch.from_numpy(read_frames(path)).permute(3, 0, 1, 2) / 127.5 - 1
    clips = ClipDataset.every(
        find_sources([str(path)]), clip_length=5, height=32, width=32, fps=8, reader=reader, every=7
    )
    assert clips.starts is not None and len(clips) > 5
    for index, (_, start) in enumerate(clips.starts):
        wanted = times[start] + np.arange(5) * 125
        nearest = np.abs(times[:, None] - wanted).argmin(axis=0)
        torch.testing.assert_close(clips[index], frames[:, nearest])
        assert clips.clip(index).origin == f"{path}, frames {' '.join(map(str, nearest))}, crop center"


def test_videos_of_different_rates_and_sizes_make_one_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_file(tmp_path / "a.mp4", moving_noise(60, height=48), fps=30)
    write_file(tmp_path / "b.mp4", moving_noise(40, width=64), fps=12)
    write_file(tmp_path / "c.mp4", moving_noise(10), fps=2)
    clips = ClipDataset.every(find_sources([str(tmp_path)]), clip_length=5, height=32, width=32, fps=6)
    first = {
        path: frames for path, frames, _ in (clips.clip(i).origin.split(", ") for i in reversed(range(len(clips))))
    }
    assert first == {
        f"{tmp_path}/a.mp4": "frames 0 5 10 15 20",
        f"{tmp_path}/b.mp4": "frames 0 2 4 6 8",
        f"{tmp_path}/c.mp4": "frames 0 0 1 1 1",
    }
    assert "1 of 3 videos are slower than 6 fps, so their frames repeat" in caplog.text
    assert {clips[index].shape for index in range(len(clips))} == {(3, 5, 32, 32)}
