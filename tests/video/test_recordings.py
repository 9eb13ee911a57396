"""Recordings of each kind, opened by one function: folders, videos, array files, PNG frames."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from recordings import write_episode
from video_files import moving_noise, smooth_motion

from vidtok_plugin import open_episodes
from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.video.opening import open_videos
from vidtok_plugin.video.writing import write_video

FRAMES = moving_noise(6, height=16, width=24)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def write_hdf5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            if np.ndim(value) == 0 and name != "fps":
                file.attrs[name] = value
            else:
                file[name] = value


WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {".npz": write_npz, ".h5": write_hdf5}


def whole() -> dict[str, Any]:
    return {
        "frames": FRAMES,
        "fps": 12.5,
        "actions": np.arange(12, dtype=np.float64).reshape(6, 2),
        "state": np.ones((6, 3), np.float64),
        "rewards": np.arange(6),
        "terminated": True,
        "task": "open the drawer",
    }


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_array_file_is_an_episode(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"a{suffix}", whole())
    for source in (tmp_path, tmp_path / f"a{suffix}"):
        (episode,) = open_episodes(source)
        assert (episode.name, episode.num_frames, episode.fps, episode.size) == (f"a{suffix}", 6, 12.5, (16, 24))
        np.testing.assert_array_equal(episode.read([4, 0, 4]), FRAMES[[4, 0, 4]])
        assert episode.actions is not None and episode.state is not None and episode.rewards is not None
        assert episode.actions.dtype == episode.state.dtype == episode.rewards.dtype == np.float32
        assert episode.actions[2].tolist() == [4, 5] and episode.rewards.tolist() == [0, 1, 2, 3, 4, 5]
        assert (episode.terminated, episode.task) == (True, "open the drawer")
        assert episode.action_space == {"kind": "continuous", "size": 2}


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_array_file_may_name_a_video(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "seen.mp4", FRAMES, fps=20)
    WRITERS[suffix](tmp_path / f"a{suffix}", {"video": "seen.mp4", "actions": np.arange(6), "num_actions": 6})
    (episode,) = open_episodes(tmp_path)
    assert (episode.num_frames, episode.fps) == (6, 20.0)
    np.testing.assert_array_equal(episode.read(range(6)), open_episodes(tmp_path / "seen.mp4")[0].read(range(6)))
    assert episode.action_space == {"kind": "discrete", "size": 6}
    assert (episode.state, episode.rewards, episode.terminated, episode.task) == (None,) * 4


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_array_file_may_have_cameras(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"a{suffix}", {"frames/left": FRAMES, "frames/right": FRAMES[:, :8]})
    (episode,) = open_episodes(tmp_path, camera="right,left")
    assert episode.read([1]).shape == (1, *episode.size, 3) == (1, 16, 48, 3)
    np.testing.assert_array_equal(episode.read([1])[:, :, 24:], FRAMES[[1]])
    with pytest.raises(ValueError, match=r"has 2 cameras: left, right; choose"):
        open_episodes(tmp_path)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"frames": None}, r"must have either frames or video"),
        ({"video": "a.mp4"}, r"must have either frames or video"),
        ({"frames": None, "video": "none.mp4"}, r"its video .*none\.mp4 doesn't exist"),
        ({"frames": FRAMES.astype(np.float32)}, r"frames must be uint8 RGB of shape \(t, h, w, 3\), got float32"),
        ({"frames": FRAMES[:, :, :, 0]}, r"frames must be uint8 RGB"),
        ({"actions": np.zeros((5, 2))}, r"actions must have one action for each frame, got 5 for 6"),
        ({"actions": np.full((6, 2), np.nan)}, r"actions must have actions that are finite .* at frame 1"),
        ({"actions": np.arange(6), "num_actions": 4}, r"actions must have actions in 0\.\.3.*got 4 at frame 4"),
        ({"state": np.zeros(6)}, r"state must be numbers of shape \(6, s\)"),
        ({"rewards": np.full(6, np.inf)}, r"rewards must have rewards that are finite"),
        ({"rewards": np.zeros((6, 1))}, r"rewards must be numbers of shape \(6,\)"),
        ({"terminated": 3.5}, r"terminated must be true or false, got float64"),
        ({"fps": -1}, r"fps must be above 0"),
        ({"task": 7}, r"task must be a text"),
    ],
)
def test_a_malformed_array_file_is_one_error(
    tmp_path: Path, suffix: str, changed: dict[str, Any], problem: str
) -> None:
    arrays = {name: value for name, value in (whole() | changed).items() if value is not None}
    WRITERS[suffix](tmp_path / f"a{suffix}", arrays)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"a{suffix}: .*{problem}.*; \w+"):
        open_episodes(tmp_path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_array_file_is_one_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=rf"a{suffix}: it cannot be read \(.*\); write the file again"):
        open_episodes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"doesn't exist"):
        open_episodes(tmp_path / f"b{suffix}")


def write_pngs(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")


def test_a_folder_of_png_frames_is_a_video(tmp_path: Path) -> None:
    """Frame 10 comes after frame 9, although not in the order of their names."""
    frames = smooth_motion(12, height=16, width=96)
    write_pngs(tmp_path / "clip", frames)
    (episode,) = open_episodes(tmp_path / "clip")
    assert (episode.name, episode.num_frames, episode.size, episode.fps) == ("clip", 12, (16, 96), None)
    np.testing.assert_array_equal(episode.read(range(12)), frames)
    assert (episode.actions, episode.rewards, episode.terminated) == (None,) * 3
    with pytest.raises(ValueError, match=r"their rate must be in .*clip\.json; write {\"fps\": 30}"):
        episode.frame_rate()
    (tmp_path / "clip.json").write_text(json.dumps({"fps": 25}))
    write_pngs(tmp_path / "other", frames[:3])
    assert [(e.name, e.num_frames, e.fps) for e in open_episodes(tmp_path)] == [("clip", 12, 25.0), ("other", 3, None)]


def test_png_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_pngs(tmp_path / "clip", FRAMES)
    Image.fromarray(FRAMES[0, :8]).save(tmp_path / "clip" / "3.png")
    with pytest.raises(ValueError, match=r"all must be 16x24 like the first, got 8x24 in 3\.png; remove or resize"):
        open_episodes(tmp_path / "clip")[0].read(range(6))


def test_a_damaged_png_is_named(tmp_path: Path) -> None:
    write_pngs(tmp_path / "clip", FRAMES)
    (tmp_path / "clip" / "2.png").write_bytes((tmp_path / "clip" / "2.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        open_episodes(tmp_path / "clip")[0].read(range(6))


def test_a_folder_of_videos_with_and_without_actions(tmp_path: Path) -> None:
    write_episode(tmp_path / "play" / "a.mp4", 5)
    write_video(tmp_path / "b.mp4", FRAMES, fps=20)
    np.savez(tmp_path / "statistics.npz", mean=np.zeros(3))  # no episode
    plain, played = open_episodes(tmp_path)
    assert (plain.name, plain.num_frames, plain.fps, plain.actions) == ("b.mp4", 6, 20.0, None)
    assert (played.name, played.num_frames) == ("play/a.mp4", 5) and played.actions is not None
    assert played.action_space["size"] == 3
    assert [episode.actions for episode in open_videos(tmp_path)] == [None, None]
    files = [tmp_path / "play" / "a.mp4", tmp_path / "play" / "a.actions.npy"]
    assert played.digest() == hash_files(*files) and plain.digest() == hash_files(tmp_path / "b.mp4")


def test_a_task_in_the_json_is_kept(tmp_path: Path) -> None:
    meta = {"fps": 30, "action_space": {"kind": "discrete", "size": 3}, "task": "go left", "terminated": True}
    write_episode(tmp_path / "a.mp4", 5, meta=meta)
    (episode,) = open_episodes(tmp_path)
    assert (episode.task, episode.terminated) == ("go left", True)


def test_a_source_without_episodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        open_episodes(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no videos"):
        open_episodes(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt must be a folder, or a file that ends in one of \.mp4"):
        open_episodes(tmp_path / "a.txt")
    write_episode(tmp_path / "a.mp4", 5)
    with pytest.raises(ValueError, match=r"has no cameras to choose from, got camera 'front'"):
        open_episodes(tmp_path, camera="front")


def test_without_h5py_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hdf5(tmp_path / "a.h5", whole())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"needs h5py, .* pip install 'vidtok-plugin\[hdf5\]'"):
        open_episodes(tmp_path)


def test_an_episode_of_one_frame_may_have_continuous_actions(tmp_path: Path) -> None:
    """The check of its actions, of which only the later ones matter, failed by a NumPy error."""
    np.savez(tmp_path / "a.npz", frames=np.zeros((1, 8, 8, 3), np.uint8), fps=10, actions=np.zeros((1, 2)))
    (episode,) = open_episodes(tmp_path / "a.npz")
    assert episode.actions is not None and episode.actions.shape == (1, 2)
