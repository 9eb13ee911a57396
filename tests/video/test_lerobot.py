"""LeRobot datasets: right frames, actions, states, rewards, ends and tasks of every episode, or one error."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lerobot_datasets import TASKS, Written, edit_info, edit_table, write_lerobot
from video_files import cut_off, numbers

from vidtok_plugin import open_episodes
from vidtok_plugin.video.opening import open_videos

CAMERAS = {"observation.images.front": (48, 64), "observation.images.wrist": (32, 64)}
# Each in several files, the first two episodes of the wrist camera in one, where those of the front camera are in two.
SPLIT = {
    "observation.images.front": [[0], [1], [2]],
    "observation.images.wrist": [[0, 1], [2]],
    "data": [[0, 1], [2]],
    "episodes": [[0], [1, 2]],
}
AV1 = pytest.param(
    "libsvtav1", marks=pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="PyAV has no AV1 encoder")
)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.image/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A dataset of v3.0 with three episodes in one file; tests do not change it."""
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "data", [7, 5, 9])


@pytest.fixture
def dataset(tmp_path: Path, stored: Written) -> Path:
    """A copy of it to change."""
    for path in stored.root.rglob("*"):
        if path.is_file():
            copy = tmp_path / "data" / path.relative_to(stored.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "data"


@pytest.mark.parametrize("codec", ["libx264", AV1])
@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_every_episode_has_its_own_frames(tmp_path: Path, version: str, codec: str) -> None:
    """At 30 fps, int(from_timestamp * fps) is a frame too early for some episodes."""
    written = write_lerobot(tmp_path / "data", [7, 1, 9, 5], version=version, codec=codec, fps=30)
    episodes = open_episodes(tmp_path / "data")
    assert [episode.name for episode in episodes] == [f"episode_{i:06d}" for i in range(4)]
    shown = 0
    for episode, frames in zip(episodes, written.frames, strict=True):
        truth = frames["observation.image"]
        read = episode.read(range(episode.num_frames))
        assert (episode.num_frames, episode.fps, episode.size) == (len(truth), 30.0, (32, 64))
        assert numbers(read) == list(range(shown, shown + len(truth)))
        assert np.abs(read.astype(float) - truth).mean() < 12  # 47 where red and blue are swapped
        shown += len(truth)
    assert numbers(episodes[2].read([8, 0, 3])) == [16, 8, 11]


def test_cameras_have_files_of_their_own(tmp_path: Path) -> None:
    """Chunks, files and times differ between cameras, and from those of the data."""
    written = write_lerobot(tmp_path / "data", [7, 5, 9], cameras=CAMERAS, split=SPLIT)
    for camera in CAMERAS:
        episodes = open_episodes(tmp_path / "data", camera=camera)
        assert numbers(np.concatenate([e.read(range(e.num_frames)) for e in episodes])) == list(range(21))
    for episode, rows in zip(episodes, written.rows, strict=True):
        np.testing.assert_array_equal(episode.state, rows["observation.state"])


@pytest.mark.parametrize("camera", [", ".join(CAMERAS), list(CAMERAS)])
def test_several_cameras_are_one_picture(tmp_path: Path, camera: Any) -> None:
    write_lerobot(tmp_path / "data", [7, 5, 9], cameras=CAMERAS, split=SPLIT)
    episode = open_episodes(tmp_path / "data", camera=camera)[1]
    read = episode.read(range(5))
    assert read.shape == (5, *episode.size, 3) == (5, 48, 128, 3)
    assert numbers(read[:, :, :64]) == numbers(read[:, :, 64:]) == list(range(7, 12))
    assert not read[:, 32:, 64:].any() and read[:, 32:, :64].any()


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_actions_and_rewards_come_with_the_frame_that_they_led_to(tmp_path: Path, version: str) -> None:
    """A row has the frame before its action, and `next.reward` is what the action led to."""
    written = write_lerobot(tmp_path / "data", [7, 5, 9], version=version)
    episodes = open_episodes(tmp_path / "data")
    for index, (episode, rows) in enumerate(zip(episodes, written.rows, strict=True)):
        assert episode.actions is not None and episode.rewards is not None and episode.state is not None
        np.testing.assert_array_equal(episode.actions[1:], rows["action"][:-1])
        np.testing.assert_array_equal(episode.rewards[1:], rows["next.reward"][:-1])
        np.testing.assert_array_equal(episode.state, rows["observation.state"])
        assert episode.actions.dtype == episode.state.dtype == episode.rewards.dtype == np.float32
        assert episode.actions.shape == (len(rows["index"]), 3) and not episode.actions[0].any()
        assert episode.task == TASKS[index % 2] and episode.action_space == {"kind": "continuous", "size": 3}
    assert [episode.terminated for episode in episodes] == [False, True, False]


def test_what_a_dataset_lacks_is_none(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "data", [3, 4], rewards=False)
    edit_info(tmp_path / "data", features={"observation.image": {"dtype": "video"}})
    episode = open_episodes(tmp_path / "data")[1]
    assert (episode.actions, episode.state, episode.rewards, episode.terminated) == (None,) * 4
    assert episode.action_space == {}


def test_integer_actions_are_discrete(tmp_path: Path) -> None:
    written = write_lerobot(tmp_path / "data", [7, 5, 9], discrete=True)
    largest = max(int(rows["action"].max()) for rows in written.rows)
    for episode, rows in zip(open_episodes(tmp_path / "data"), written.rows, strict=True):
        assert episode.actions is not None and episode.actions.dtype == np.int64
        assert episode.actions.tolist()[1:] == rows["action"].tolist()[:-1]
        assert episode.action_space == {"kind": "discrete", "size": largest + 1}


def test_an_episode_can_be_pickled(stored: Written) -> None:
    episode = pickle.loads(pickle.dumps(open_episodes(stored.root)[1]))
    assert numbers(episode.read([4])) == [11] and str(episode) == f"{stored.root}, episode_000001"


def test_the_digest_is_of_the_episode_alone(dataset: Path, tmp_path: Path) -> None:
    """Episodes that are added to its files later leave it as it is; other frames and other actions change it."""
    before = [episode.digest() for episode in open_episodes(dataset)]
    longer = write_lerobot(tmp_path / "longer", [7, 5, 9, 4])
    after = [episode.digest() for episode in open_episodes(longer.root)]
    assert after[:2] == before[:2] and len(set(after)) == 4
    frames = [episode.digest() for episode in open_videos(dataset)]
    actions = [[0.5] * 3] * 21
    edit_table(dataset / DATA, action=actions)
    assert [episode.digest() for episode in open_videos(dataset)] == frames
    assert not set(before) & {episode.digest() for episode in open_episodes(dataset)}


def use(episodes: Any) -> None:
    for episode in episodes:
        episode.read(range(episode.num_frames))
        assert episode.actions is not None


def nan_action(root: Path) -> None:
    values = [[0.0] * 3 for _ in range(21)]
    values[9][1] = float("nan")
    edit_table(root / DATA, action=values)


def unknown_codec(root: Path) -> None:
    data = (root / VIDEO).read_bytes()
    (root / VIDEO).write_bytes(data.replace(b"avc1", b"zzzz"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda root: (root / DATA).unlink(), r"file-000\.parquet is missing"),
        (lambda root: (root / VIDEO).unlink(), r"file-000\.mp4 is missing"),
        (lambda root: (root / EPISODES).unlink(), r"meta/episodes has no parquet files"),
        (lambda root: cut_off(root / DATA, 0.5), r"file-000\.parquet cannot be read"),
        (lambda root: cut_off(root / VIDEO, 0.5), r"file-000\.mp4 cannot be read"),
        (lambda root: (root / VIDEO).write_bytes(b""), r"file-000\.mp4 cannot be read: .*empty"),
        (unknown_codec, r"file-000\.mp4 cannot be decoded: .*no decoder for its codec"),
        (nan_action, r"episode_000001: .*file-000\.parquet: action must .*finite .*nan.* at frame 2"),
        (lambda root: edit_table(root / DATA, action=None), r"must have the column action, got"),
        (lambda root: edit_table(root / DATA, episode_index=[0] * 12 + [2] * 9), r"must have 7 rows .*got 12"),
        (lambda root: edit_table(root / DATA, frame_index=[0] * 21), r"must have frame_index 0\.\.6 in order"),
        (lambda root: edit_table(root / DATA, episode_index=None), r"must have the column episode_index"),
        (lambda root: edit_table(root / EPISODES, length=[7, 6, 9]), r"episode 1 must last 0\.6000 s"),
        (lambda root: edit_table(root / EPISODES, length=None), r"file-000\.parquet must have a value of length"),
        (lambda root: edit_table(root / EPISODES, episode_index=[0, 1, 3]), r"0\.\.2.*but episode 2 is missing"),
        (lambda root: edit_table(root / EPISODES, episode_index=[0, 1, 1]), r"got episode 1 twice"),
        (lambda root: edit_table(root / EPISODES, data__file_index=[0, 7, 0]), r"file-007\.parquet is missing"),
        (lambda root: edit_info(root, total_episodes=2), r"episode 2 is not expected"),
        (lambda root: edit_info(root, codebase_version="v1.6"), r"codebase_version must be one of v2\.0, v2\.1, v3\.0"),
        (lambda root: edit_info(root, fps=0), r"info\.json, fps must be a number above 0, got 0"),
        (lambda root: edit_info(root, fps=20), r"must last 0\.3500 s"),
        (lambda root: edit_info(root, video_path="videos/{nobody}.mp4"), r"video_path must be a pattern of video_key"),
        (lambda root: edit_info(root, features={}), r"features must have one with dtype video"),
        (lambda root: (root / "meta/info.json").write_text("{"), r"info\.json is not valid JSON"),
    ],
)
def test_a_malformed_dataset_is_one_error(dataset: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    spoil(dataset)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s){problem}.*; \w+"):
        use(open_episodes(dataset))


def test_a_video_of_another_length_is_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "data", [7, 5], version="v2.1").root
    first, second = sorted(root.glob("videos/*/*/*.mp4"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"episode_000000\.mp4 must have 7 frames, got 5; download"):
        use(open_episodes(root))


@pytest.mark.parametrize(
    ("camera", "problem"),
    [
        ("observation.image", r"has no camera 'observation\.image'; choose from observation\.images\.front, obs"),
        (None, r"has 2 cameras: observation\.images\.front, observation\.images\.wrist; choose"),
        ("", r"has no camera ''; choose"),
        ([], r"must name at least one"),
        (",".join([*CAMERAS] * 2), r"each once"),
    ],
)
def test_cameras_must_be_chosen_from_those_there(tmp_path: Path, camera: Any, problem: str) -> None:
    write_lerobot(tmp_path / "data", [2], cameras=CAMERAS)
    with pytest.raises(ValueError, match=problem):
        open_episodes(tmp_path / "data", camera=camera)


def test_without_pyarrow_the_error_names_the_extra(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow, .* pip install 'vidtok-plugin\[lerobot\]'"):
        open_episodes(dataset)
