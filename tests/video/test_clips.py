"""Clips are the right frames, random clips depend only on their keys, and unreadable videos are reported."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtok_plugin.video import (
    ClipDataset,
    UnreadableVideoError,
    UnreadableVideos,
    find_sources,
    read_frames,
    write_video,
)

SHAPE = {"clip_length": 5, "height": 16, "width": 16}


def noise(path: Path, num_frames: int, size: int = 16, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (num_frames, size // 4, size // 4, 3), dtype=np.uint8)
    write_video(path, coarse.repeat(4, axis=1).repeat(4, axis=2), fps=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    noise(root / "a/long.mp4", 40, seed=1)
    noise(root / "b/short.mp4", 12, seed=2)
    noise(root / "b/other.mp4", 12, seed=3)
    return root


def frames_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_frames(path)).permute(3, 0, 1, 2) / 127.5 - 1


def test_a_clip_is_consecutive_frames_of_one_video(folder: Path) -> None:
    clips = ClipDataset.random(find_sources([str(folder)]), **SHAPE, seed=3)
    whole = {path: frames_of(path) for path in folder.rglob("*.mp4")}
    for index in range(len(clips)):
        clip = clips[index]
        assert clip.shape == (3, 5, 16, 16) and clip.dtype == torch.float32
        windows = [video[:, s : s + 5] for video in whole.values() for s in range(video.shape[1] - 4)]
        assert sum(torch.allclose(clip, window, atol=1e-6) for window in windows) == 1


def test_a_frame_interval_skips_frames(folder: Path) -> None:
    clips = ClipDataset.every(find_sources([str(folder / "a")]), **SHAPE, frame_interval=3, every=10)
    video = frames_of(folder / "a/long.mp4")
    assert len(clips) == 3  # from frames 0, 10 and 20; each needs 13
    torch.testing.assert_close(clips[2], video[:, 20:33:3])


def test_a_random_clip_depends_only_on_seed_epoch_and_index(folder: Path) -> None:
    sources = find_sources([str(folder)])
    one, two = (ClipDataset.random(sources, **SHAPE, seed=3, num_clips=50) for _ in range(2))
    for _ in range(3):
        two[7]
    assert torch.equal(one[(4, 11)], two[(4, 11)])
    assert torch.equal(one[11], one[(0, 11)])
    assert not torch.equal(one[(4, 11)], one[(5, 11)])
    assert not torch.equal(one[(4, 11)], one[(4, 12)])
    other = ClipDataset.random(sources, **SHAPE, seed=4, num_clips=50)
    assert not torch.equal(one[(4, 11)], other[(4, 11)])


def fraction_from_a(folder: Path, clips: ClipDataset) -> float:
    """The fraction of random clips from the long video of source a, which is recognized by sums of frames."""
    sums = {round(float(frame.sum()), 2) for frame in frames_of(folder / "a/long.mp4").unbind(1)}
    first = [round(float(clips[index][:, 0].sum()), 2) for index in range(len(clips))]
    return sum(value in sums for value in first) / len(first)


def test_weights_balance_sources_of_any_length(folder: Path) -> None:
    patterns = [str(folder / "a"), str(folder / "b")]
    shape = SHAPE | {"num_clips": 400, "cache_mb": 1}
    unweighted = ClipDataset.random(find_sources(patterns), **shape)
    assert fraction_from_a(folder, unweighted) == pytest.approx(36 / 52, abs=0.08)  # in proportion to their clips
    weighted = ClipDataset.random(find_sources(patterns, [1.0, 3.0]), **shape, weighted=True)
    assert fraction_from_a(folder, weighted) == pytest.approx(1 / 4, abs=0.08)


def test_the_weight_of_a_pattern_is_divided_among_its_folders(folder: Path) -> None:
    sources = find_sources([str(folder / "*")], [2.0])
    assert [(Path(source.name).name, source.weight) for source in sources] == [("a", 1.0), ("b", 1.0)]
    with pytest.raises(ValueError, match="one positive number for each of the 1 entries"):
        find_sources([str(folder)], [1.0, 2.0])
    with pytest.raises(FileNotFoundError, match="none doesn't exist"):
        find_sources([str(folder / "none")])


def test_cached_clips_equal_uncached_clips(folder: Path) -> None:
    sources = find_sources([str(folder)])
    plain = ClipDataset.random(sources, **SHAPE | {"height": 8}, frame_interval=2, num_clips=20)
    cached = ClipDataset.random(sources, **SHAPE | {"height": 8}, frame_interval=2, num_clips=20, cache_mb=1)
    tight = ClipDataset.random(sources, **SHAPE | {"height": 8}, frame_interval=2, num_clips=20, cache_mb=1)
    tight.cache_left = 12 * 8 * 16 * 3  # space for one of the videos
    for index in range(20):
        assert torch.equal(plain[index], cached[index]) and torch.equal(plain[index], tight[index])
    assert len(plain.cache) == 0 and len(cached.cache) == 3 and len(tight.cache) == 1


def test_each_clip_is_mirrored_at_random(folder: Path) -> None:
    sources = find_sources([str(folder)])
    plain = ClipDataset.random(sources, **SHAPE, num_clips=30)
    flipping = ClipDataset.random(sources, **SHAPE, num_clips=30, horizontal_flip=True)
    same = [torch.equal(plain[i], flipping[i]) for i in range(30)]
    mirrored = [torch.equal(plain[i].flip(-1), flipping[i]) for i in range(30)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 5 < sum(mirrored) < 25


def test_validation_clips_are_evenly_spaced_and_limited(folder: Path) -> None:
    clips = ClipDataset.every(find_sources([str(folder / "a")]), **SHAPE)
    assert [start for _, start in clips.starts or []] == list(range(0, 36, 5))
    few = ClipDataset.every(find_sources([str(folder / "a")]), **SHAPE, max_clips=3)
    assert [start for _, start in few.starts or []] == [0, 20, 35]
    torch.testing.assert_close(few[1], frames_of(folder / "a/long.mp4")[:, 20:25])


def test_a_video_of_another_size_is_resized_and_cropped(folder: Path) -> None:
    clips = ClipDataset.every(find_sources([str(folder / "a")]), clip_length=2, height=8, width=4)
    expected = torch.nn.functional.avg_pool2d(frames_of(folder / "a/long.mp4")[:, :2], 2)[..., 2:6]
    torch.testing.assert_close(clips[0], expected, atol=0.005, rtol=0)


def test_a_short_video_is_an_error_unless_skipped(folder: Path) -> None:
    sources = find_sources([str(folder)])
    shape = SHAPE | {"clip_length": 17}
    with pytest.raises(ValueError, match=r"other\.mp4 has 12 frames, but a clip needs 17 frames; .*skip_short=true"):
        ClipDataset.random(sources[:1], **shape)
    clips = ClipDataset.random(sources, **shape, skip_short=True)
    assert [video.path.name for video in clips.videos] == ["long.mp4"]
    with pytest.raises(ValueError, match="none of the 3 videos"):
        ClipDataset.random(sources, **SHAPE | {"clip_length": 50}, skip_short=True)


def test_an_unreadable_video_is_an_error_or_skipped_within_the_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        noise(tmp_path / f"{number}.mp4", 6, seed=number)
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    sources = find_sources([str(tmp_path)])
    with pytest.raises(UnreadableVideoError, match=r"1 of 11 .* allows 0.* Video .*bad\.mp4 cannot be read"):
        ClipDataset.random(sources, **SHAPE)
    with caplog.at_level(logging.WARNING):
        clips = ClipDataset.random(sources, **SHAPE, unreadable=UnreadableVideos(0.1))
        clips[0], clips[1]
    assert len(clips.videos) == 10 and clips.unreadable.count == 1
    assert caplog.text.count("bad.mp4 cannot be read") == 1
    assert "of 11 videos, 0 are too short and 1 unreadable" in caplog.text
    (tmp_path / "worse.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(UnreadableVideoError, match=r"2 of 12 videos cannot be read, .*=0\.1 allows 1\."):
        ClipDataset.random(find_sources([str(tmp_path)]), **SHAPE, unreadable=UnreadableVideos(0.1))
