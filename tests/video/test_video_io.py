"""Videos are read as written, and errors of unreadable ones are one clear sentence."""

import json
import os
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from vidtok_plugin.video import (
    UnreadableVideoError,
    VideoWriter,
    find_episodes,
    find_sources,
    find_videos,
    probe,
    read_frames,
    reading,
    write_video,
)
from vidtok_plugin.video.decord_reader import DecordReader
from vidtok_plugin.video.episodes import save_episode_files
from vidtok_plugin.video.pyav_reader import PyavReader
from vidtok_plugin.video.reading import ReaderPool, count_frames, open_video, read_in_order
from vidtok_plugin.video.resizing import (
    area_weights,
    cover,
    crop_out,
    resize,
    resize_and_crop,
    resize_weights,
)


def moving_square(num_frames: int, size: int = 32) -> np.ndarray:
    """Frames that all differ: a white square on color, moving by one pixel per frame."""
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    frames[:] = (200, 40, 90)
    for index, frame in enumerate(frames):
        left = index % (size - 6)
        frame[8:14, left : left + 6] = 255
        frame[20:24, :4] = (index * 3) % 256
    return frames


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, np.ndarray]:
    frames = moving_square(50)
    write_video(tmp_path / "clip.mp4", frames, fps=30)
    return tmp_path / "clip.mp4", frames


def test_frames_are_read_as_written(clip: tuple[Path, np.ndarray]) -> None:
    """yuv420p would change colors: at 32x32 errors reach 20 and more."""
    path, frames = clip
    read = read_frames(path)
    assert read.dtype == np.uint8 and read.shape == frames.shape
    error = np.abs(read.astype(int) - frames)
    assert error.mean() < 2 and error.max() < 16


def test_probe_returns_length_size_and_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", moving_square(5, 32)[:, :16], fps=12.5)
    info = probe(tmp_path / "wide.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (5, 16, 32, 12.5)
    assert count_frames(tmp_path / "wide.mp4") == 5


def test_random_access_equals_reading_in_order(clip: tuple[Path, np.ndarray]) -> None:
    path, _ = clip
    everything = read_frames(path)
    for indices in ([49], [0, 1, 2], [48, 3, 17], list(range(31, 48)), [7, 7], [5]):
        np.testing.assert_array_equal(read_frames(path, indices), everything[indices])


@pytest.mark.parametrize("width", [8, 16, 40, 48, 72])
def test_narrow_videos_are_read_correctly(tmp_path: Path, width: int) -> None:
    """decord 0.6 takes row padding for channels at widths such as 16, 48 and 72, and fails on their batches."""
    frames = moving_square(9, 72)[:, :, :width]
    write_video(tmp_path / "narrow.mp4", frames, fps=30)
    read = read_frames(tmp_path / "narrow.mp4")
    assert read.shape == frames.shape and np.abs(read.astype(int) - frames).mean() < 2
    np.testing.assert_array_equal(read_frames(tmp_path / "narrow.mp4", [7, 2]), read[[7, 2]])
    assert probe(tmp_path / "narrow.mp4").width == width


def test_no_reader_is_open_at_a_fork(clip: tuple[Path, np.ndarray]) -> None:
    """A loader's worker hung or aborted when it freed a reader from before the fork: it joined threads that did not
    exist there, and thereby others that had been given their stacks."""
    path, _ = clip
    pool = ReaderPool()
    expected = read_frames(path, [20], pool=pool)
    reader = weakref.ref(pool.reader(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks with threads
        process = os.fork()
    if process == 0:
        os._exit(0 if reader() is None and (read_frames(path, [20], pool=pool) == expected).all() else 1)
    assert os.waitpid(process, 0)[1] == 0
    np.testing.assert_array_equal(read_frames(path, [20], pool=pool), expected)


def test_a_pool_keeps_the_most_recent_readers_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for path in paths:
        write_video(path, moving_square(3), fps=30)
    pool = ReaderPool(capacity=2)
    first, second = pool.reader(paths[0]), pool.reader(paths[1])
    assert pool.reader(paths[0]) is first
    pool.reader(paths[2])  # evicts the second, the least recent
    assert pool.reader(paths[0]) is first and pool.reader(paths[1]) is not second


def test_a_rewritten_file_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, moving_square(3), fps=30)
    assert len(read_frames(path)) == 3
    write_video(path, moving_square(8), fps=30)
    assert len(read_frames(path)) == 8


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_a_file_that_is_not_a_video_is_an_error_with_the_cause(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"Video .*notes\.mp4 cannot be read: .*remove or replace it\.") as caught:
        read_frames(tmp_path / "notes.mp4")
    assert "\n" not in str(caught.value)


def test_a_truncated_video_is_an_error(clip: tuple[Path, np.ndarray]) -> None:
    path, _ = clip
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be read"):
        probe(path)


class Overreporting:
    """A decord reader of a video that declares 60 frames but has 50, where decord fails internally."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.reader, self.error, self.given = DecordReader(path)._reader, error, 0

    def seek(self, index: int) -> None:
        pass

    def get_batch(self, indices: list[int]) -> object:
        if max(indices) >= 50:
            raise RuntimeError("[12:00:00] video_reader.cc:1: Check failed: run_ Unable to handle EOF\nStack trace:\n1")
        return self.reader.get_batch(indices)

    def next(self) -> object:
        if self.given == 50:
            raise self.error
        self.given += 1
        return self.reader.next()


def overreporting(path: Path, error: Exception | None = None) -> DecordReader:
    reader = DecordReader(path)
    reader._reader, reader.num_frames = Overreporting(path, error or StopIteration()), 60
    return reader


def test_a_video_that_declares_too_many_frames_is_an_error(
    clip: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "open_video", lambda path, reader: overreporting(path))
    with pytest.raises(UnreadableVideoError, match=r"clip\.mp4 cannot be decoded at frames 50\.\.59.*handle EOF"):
        read_frames(clip[0], range(50, 60), pool=ReaderPool())


@pytest.mark.parametrize("width", [8, 16, 32, 48, 72])
def test_reading_in_order_gives_the_same_frames(tmp_path: Path, width: int) -> None:
    write_video(tmp_path / "clip.mp4", moving_square(50, 72)[:, :, :width], fps=30)
    blocks = list(read_in_order(tmp_path / "clip.mp4", 16))
    assert [len(block) for block in blocks] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), read_frames(tmp_path / "clip.mp4"))


@pytest.mark.parametrize(
    ("error", "cause"),
    [(StopIteration(), "there are no more frames"), (RuntimeError("[1:1] a.cc:1: broken"), "broken")],
)
def test_a_video_that_ends_early_is_an_error_when_read_in_order(
    clip: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
) -> None:
    path, _ = clip
    monkeypatch.setattr(reading, "open_video", lambda path, reader: overreporting(path, error))
    blocks = read_in_order(path, 45)
    assert len(next(blocks)) == 45
    with pytest.raises(UnreadableVideoError, match=rf"decoded at frames 50\.\.50.*declares 60.*\({cause}\)"):
        next(blocks)


def test_a_change_of_the_frame_size_is_an_error_when_read_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing:
        num_frames = 2

        def in_order(self) -> Iterator[np.ndarray]:
            yield from (moving_square(1, size)[0] for size in (16, 32))

        def close(self) -> None:
            pass

    monkeypatch.setattr(reading, "open_video", lambda path, reader: Changing())
    with pytest.raises(UnreadableVideoError, match=r"a\.mp4 cannot be decoded at frames 0\.\.1.*their sizes differ"):
        next(read_in_order("a.mp4", 2))


def test_missing_files_and_indices_outside_are_errors(clip: tuple[Path, np.ndarray]) -> None:
    path, _ = clip
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 doesn't exist"):
        probe(path.with_name("none.mp4"))
    with pytest.raises(ValueError, match=r"has frames 0\.\.49, got index 50"):
        read_frames(path, [0, 50])


def test_a_video_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=30) as writer:
        writer.write(moving_square(4))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with VideoWriter(path, fps=30) as writer:
        writer.write(moving_square(4))
        writer.write(moving_square(1)[0])
        assert not path.exists()
    assert [child.name for child in tmp_path.iterdir()] == ["clip.mp4"] and count_frames(path) == 5


def test_a_suffix_chooses_the_container_or_is_refused(tmp_path: Path) -> None:
    """An .mkv was an mp4 file by another name."""
    for suffix, container in (("mp4", "mp4"), ("MOV", "mov"), ("mkv", "matroska")):
        write_video(tmp_path / f"a.{suffix}", moving_square(3), fps=30)
        with av.open(str(tmp_path / f"a.{suffix}")) as file:
            assert container in file.format.name
        assert len(read_frames(tmp_path / f"a.{suffix}")) == 3
    for name in ("a.gif", "a.webm", "a"):
        with pytest.raises(ValueError, match=rf"must end in one of \.mp4, .*got {name}; give a name such as out\.mp4"):
            VideoWriter(tmp_path / name, fps=30)


def test_frames_keep_their_times(tmp_path: Path) -> None:
    times = np.array([1.5, 1.51, 1.9, 4.0, 4.25])
    for name in ("a.mp4", "a.mkv"):
        with VideoWriter(tmp_path / name, fps=30) as writer:
            writer.write(moving_square(3), times[:3].tolist())
            writer.write(moving_square(2), times[3:].tolist())
        np.testing.assert_allclose(open_video(tmp_path / name).times(), times - 1.5, atol=6e-4)
    with pytest.raises(ValueError, match="must increase"), VideoWriter(tmp_path / "b.mp4", fps=30) as writer:
        writer.write(moving_square(2), [0.0, 0.0])
    with pytest.raises(ValueError, match="for all frames"), VideoWriter(tmp_path / "b.mp4", fps=30) as writer:
        writer.write(moving_square(1), [0.0])
        writer.write(moving_square(1))
    assert not (tmp_path / "b.mp4").exists()


def test_a_failing_close_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container stayed open, and the unfinished file stayed beside the output."""
    writer = VideoWriter(tmp_path / "a.mp4", fps=30)
    writer.write(moving_square(3))
    container, closed = writer._container, []
    assert container is not None

    class Full:
        def mux(self, packets: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            closed.append(True)
            container.close()
            raise OSError(28, "No space left on device")

    writer._container = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert closed and list(tmp_path.iterdir()) == []


def test_probing_again_decodes_nothing(clip: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing decoded the first frame of an episode four times."""
    decoded: list[list[int]] = []
    read = PyavReader.read
    monkeypatch.setattr(PyavReader, "read", lambda self, frames: (decoded.append(list(frames)), read(self, frames))[1])
    for _ in range(3):
        assert probe(clip[0]).height == 32
    assert decoded == [[0]]
    write_video(clip[0], moving_square(7, 48), fps=30)  # another version is decoded again
    assert (probe(clip[0]).height, probe(clip[0]).num_frames) == (48, 7) and len(decoded) == 2


def test_invalid_frames_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", moving_square(2).astype(np.float32), fps=30)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], fps=30)
    with pytest.raises(ValueError, match="like the first"):
        write_video(tmp_path / "a.mp4", [moving_square(2), moving_square(2, 48)], fps=30)
    assert list(tmp_path.iterdir()) == []


def test_videos_are_found_in_subfolders_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.AVI", "a/notes.txt", ".d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == [tmp_path / "a/c.AVI", tmp_path / "b.mp4"]


def test_linked_folders_are_followed_once_and_hidden_ones_skipped(tmp_path: Path) -> None:
    """Linked folders were left out without a word, and hidden folders searched."""
    data = tmp_path / ".cache" / "data"  # a hidden folder above does not matter
    for name in ("data/real/a.mp4", "data/.trash/b.mp4", "disk/c.mp4"):
        (tmp_path / ".cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".cache" / name).touch()
    (data / "a_link").symlink_to(data / "real")  # the folder's own place counts
    (data / "linked").symlink_to(tmp_path / ".cache" / "disk")
    (data / "again").symlink_to(tmp_path / ".cache" / "disk")
    (data / "real" / "loop").symlink_to(data)
    (data / "real" / "above").symlink_to(tmp_path)
    (data / "gone.mp4").symlink_to(tmp_path / "none")  # named when it is read
    assert find_videos(data) == [data / "again/c.mp4", data / "gone.mp4", data / "real/a.mp4"]
    (source,) = find_sources([str(data / "*/*.mp4")])
    assert sorted(path.name for path in source.videos) == ["a.mp4", "c.mp4"]


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.mp4").touch()
    scan = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        find_videos(tmp_path)


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none doesn't exist"):
        find_videos(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no videos.*\.mp4, \.avi"):
        find_videos(tmp_path)
    (tmp_path / "file.mp4").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        find_videos(tmp_path / "file.mp4")


def test_episodes_have_actions_and_meta(clip: tuple[Path, np.ndarray]) -> None:
    path, frames = clip
    actions = np.arange(len(frames), dtype=np.int64) % 4
    meta = {"num_frames": len(frames), "action_space": {"kind": "discrete", "size": 4}}
    save_episode_files(path, actions, meta)
    (episode,) = find_episodes(path.parent)
    np.testing.assert_array_equal(episode.actions, actions)
    assert (episode.path, episode.meta, episode.num_frames) == (path, meta, 50)


def test_invalid_actions_are_errors(clip: tuple[Path, np.ndarray]) -> None:
    path, _ = clip
    with pytest.raises(FileNotFoundError, match=r"has no clip\.actions\.npy"):
        find_episodes(path.parent)
    np.save(path.with_suffix(".actions.npy"), np.zeros(49, np.int64))
    path.with_suffix(".json").write_text(json.dumps({"num_frames": 50}))
    with pytest.raises(ValueError, match="must have one action for each frame, got 49 for 50"):
        find_episodes(path.parent)
    np.save(path.with_suffix(".actions.npy"), np.zeros((50, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"shape \(t,\) or floats"):
        find_episodes(path.parent)
    np.save(path.with_suffix(".actions.npy"), np.full(50, 7))
    path.with_suffix(".json").write_text(json.dumps({"action_space": {"kind": "discrete", "size": 4}}))
    with pytest.raises(ValueError, match=r"actions in 0\.\.3.*got 7 at frame 1"):
        find_episodes(path.parent)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            [[0, 0]] * 30 + [[0, np.nan]] + [[0, 0]] * 19,
            r"actions that are finite in float32, got \[ ?0. nan\] at frame 30; record it",
        ),
        (np.full((50, 2), 1e300), r"actions that are finite in float32, got \[1.e\+300 1.e\+300\] at frame 1"),
        (np.full(50, -1), r"actions in 0\.\.3.*got -1 at frame 1"),
        (np.full(50, 2**64 - 1, np.uint64), r"actions in 0\.\.3.*got 18446744073709551615 at frame 1"),
    ],
)
def test_actions_that_are_no_numbers_are_errors(actions: object, message: str, clip: tuple[Path, np.ndarray]) -> None:
    """NaN was stored, and training failed."""
    path, _ = clip
    np.save(path.with_suffix(".actions.npy"), np.asarray(actions))
    space = {"kind": "discrete", "size": 4} if np.asarray(actions).ndim == 1 else {"kind": "continuous", "size": 2}
    path.with_suffix(".json").write_text(json.dumps({"action_space": space}))
    with pytest.raises(ValueError, match=rf"clip\.mp4: clip\.actions\.npy must have {message}"):
        find_episodes(path.parent)


@pytest.mark.parametrize("kind", [">i8", "<u8", ">u2", "i1", ">f4", "<f8", "f2"])
def test_actions_of_any_width_and_byte_order_are_read_and_the_first_may_be_anything(
    kind: str, clip: tuple[Path, np.ndarray]
) -> None:
    path, _ = clip
    actions = (np.arange(50) % 3).astype(kind)
    discrete = actions.dtype.kind in "iu"
    if not discrete:
        actions = np.stack([actions, actions], axis=1)
        actions[0] = np.nan
    elif actions.dtype.kind == "i":
        actions[0] = -1
    np.save(path.with_suffix(".actions.npy"), actions)
    space = {"kind": "discrete", "size": 3} if discrete else {"kind": "continuous", "size": 2}
    path.with_suffix(".json").write_text(json.dumps({"action_space": space}))
    (episode,) = find_episodes(path.parent)
    assert episode.actions.dtype == (np.int64 if discrete else np.float32) and episode.actions.dtype.isnative
    np.testing.assert_array_equal(episode.actions[1:], actions[1:])


@pytest.mark.parametrize(("source", "target"), [(210, 64), (64, 64), (7, 3), (16, 40)])
def test_resizing_keeps_flat_areas_flat(source: int, target: int) -> None:
    np.testing.assert_allclose(resize_weights(source, target).sum(axis=1), 1, atol=1e-5)


def test_shrinking_averages_the_covered_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    blocks = frames.reshape(2, 4, 2, 4, 3, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(resize(frames, 4, 4), blocks, atol=0.51)
    np.testing.assert_allclose(area_weights(4, 2, 0.5, 2.0), [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]])


@pytest.mark.parametrize(("source", "target"), [((45, 80), (16, 16)), ((21, 34), (34, 50)), ((7, 100), (1, 3))])
def test_resizing_is_the_product_with_the_weights(source: tuple[int, int], target: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *source, 3), dtype=np.uint8)
    rows, columns = (resize_weights(a, b).astype(np.float64) for a, b in zip(source, target, strict=True))
    whole = np.einsum("yh,thwc,xw->tyxc", rows, frames, columns)
    np.testing.assert_allclose(resize(frames, *target), whole, atol=0.501)


@pytest.mark.parametrize("place", [None, (0.0, 0.0), (0.99, 0.3), (0.2, 0.99)])
@pytest.mark.parametrize("size", [(45, 80), (80, 45), (16, 24), (12, 9)])
def test_resize_and_crop_equals_a_crop_of_the_resized_frames(
    size: tuple[int, int], place: tuple[float, float] | None
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    expected = crop_out(cover(frames, 16, 24), 16, 24, place)
    np.testing.assert_array_equal(resize_and_crop(frames, 16, 24, place), expected)


def test_frames_of_the_right_size_are_unchanged() -> None:
    frames = moving_square(2)
    assert resize(frames, 32, 32) is frames
    np.testing.assert_array_equal(resize_and_crop(frames, 32, 32), frames)


def test_frames_of_another_aspect_ratio_are_center_cropped() -> None:
    frames = np.zeros((1, 20, 60, 3), np.uint8)
    frames[:, :, 20:40] = 255  # the middle third
    assert (resize_and_crop(frames, 10, 10) == 255).all()
    assert resize_and_crop(frames, 33, 17).shape == (1, 33, 17, 3)


@pytest.mark.slow
def test_reproducible_files_of_the_same_frames_are_the_same(tmp_path: Path) -> None:
    """A few files in a hundred differed, by what lay in memory before."""
    frames = np.full((40, 64, 96, 3), 255, np.uint8)
    for i in range(40):
        frames[i, 20:30, 10 + i : 20 + i] = (200, 150, 100)
    frames[:, 40:41] = 0
    rng, kept, files = np.random.default_rng(0), [], set()
    for i in range(100):
        kept = [*kept[:: 2 if i % 3 == 0 else 1], rng.integers(0, 255, 10_000 + i * 3777, dtype=np.uint8)]
        with VideoWriter(tmp_path / "a.mp4", fps=50, reproducible=True) as writer:
            writer.write(frames)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1
