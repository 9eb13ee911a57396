"""Episodes of any size and rate are brought to one, with the actions, rewards and states of the frames kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_files import numbers, smooth_motion, write_file

from vidtok_plugin import open_episodes
from vidtok_plugin.video.action_space import kind_and_size
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.preparation import Preparation
from vidtok_plugin.video.video_file import VideoFile


def recorded(
    folder: Path, total: int = 11, *, fps: float = 30, size: tuple[int, int] = (16, 16), **more: Any
) -> Episode:
    """An episode whose frame i has the gray value i."""
    frames = np.arange(total, dtype=np.uint8)[:, None, None, None].repeat(size[0], 1).repeat(size[1], 2).repeat(3, 3)
    np.savez(folder / "a.npz", frames=frames, fps=fps, **more)
    return open_episodes(folder / "a.npz")[0]


def shown(episode: Episode) -> list[int]:
    return episode.read(range(episode.num_frames))[:, 0, 0, 0].tolist()


PICTURE = np.zeros((1, 8, 16, 3), np.uint8)  # four columns of color, each of 8x4
PICTURE[:, :, :4], PICTURE[:, :, 4:8] = (200, 0, 0), (0, 200, 0)
PICTURE[:, :, 8:12], PICTURE[:, :, 12:] = (0, 0, 200), (200, 200, 200)
R, G, B, W, K = [200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 200], [0, 0, 0]


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (None, [[G, B]] * 2),
        ("crop", [[G, B]] * 2),
        ("stretch", [[[100, 100, 0], [100, 100, 200]]] * 2),
    ],
)
def test_another_shape_is_cropped_or_stretched(tmp_path: Path, fit: Any, expected: list[Any]) -> None:
    np.savez(tmp_path / "a.npz", frames=PICTURE, fps=30)
    (episode,) = open_episodes(tmp_path / "a.npz")
    prepared = Preparation(size=(2, 2), fit=fit).of(episode)
    assert prepared.size == (2, 2)
    assert prepared.read([0])[0].tolist() == expected


def test_another_shape_is_padded_with_black(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", frames=PICTURE, fps=30)
    prepared = Preparation(size=(8, 4), fit="pad").of(open_episodes(tmp_path / "a.npz")[0])
    assert prepared.read([0])[0].tolist() == [[K] * 4] * 3 + [[R, G, B, W]] * 2 + [[K] * 4] * 3


def test_frames_of_the_right_size_and_rate_stay_as_they_are(tmp_path: Path) -> None:
    episode = recorded(tmp_path, actions=np.zeros((11, 2), np.float32))
    prepared = Preparation(size=(16, 16), fps=30).of(episode)
    assert np.array_equal(prepared.read(range(11)), episode.read(range(11)))
    assert prepared.actions is episode.actions and prepared.action_space == episode.action_space
    assert Preparation().of(episode) is episode


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (30, list(range(11))),
        (15, [0, 2, 4, 6, 8, 10]),
        (12, [0, 2, 5, 7, 10]),  # of two equally near, the earlier
        (60, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10]),
    ],
)
def test_without_actions_each_frame_is_the_nearest_in_time(tmp_path: Path, fps: float, expected: list[int]) -> None:
    prepared = Preparation(fps=fps).of(recorded(tmp_path))
    assert shown(prepared) == expected and prepared.num_frames == len(expected)
    assert prepared.fps == prepared.frame_rate() == fps
    assert prepared.times().tolist() == [i / fps for i in range(len(expected))]


def test_variable_rates_are_resampled_by_the_times_of_the_frames(tmp_path: Path) -> None:
    """Frames 0 to 9 are 20 ms apart and the others 80 ms, so that counting them would run at the wrong speed."""
    times = [20 * i for i in range(10)] + [180 + 80 * i for i in range(1, 11)]
    path = write_file(tmp_path / "a.mp4", smooth_motion(20, height=64, width=96), times=times)
    prepared = Preparation(fps=12.5).of(VideoFile.at(path))  # every 80 ms
    assert numbers(prepared.read(range(prepared.num_frames)))[:6] == [0, 4, 8, 10, 11, 12]
    assert numbers(prepared.read([prepared.num_frames - 1])) == [19]
    assert prepared.num_frames == 13


BOX = {"type": "Box", "shape": [1], "low": -1, "high": 1}
ACTIONS = np.array([9, 1, 2, 0, 1, 2, 2, 1, 0, 1, 1])  # the first may be anything


def test_discrete_actions_become_as_many_choices(tmp_path: Path) -> None:
    episode = recorded(tmp_path, actions=ACTIONS, num_actions=3, rewards=np.arange(11.0), state=np.eye(11))
    prepared = Preparation(fps=10).of(episode)
    assert shown(prepared) == [0, 3, 6, 9]
    assert prepared.actions is not None and prepared.actions.dtype == np.float32
    assert prepared.actions.tolist() == [[0, 0, 0], [1, 2, 0], [1, 2, 2], [1, 0, 1]]
    space = {"type": "Tuple", "spaces": [{"type": "Discrete", "n": 3}] * 3}
    each = {"kind": "discrete", "size": 3}
    assert prepared.action_space == {"kind": "mixed", "size": 3, "frames": 3, "each": each, "space": space}
    assert kind_and_size(space) == ("mixed", 3)
    assert prepared.rewards is not None and prepared.rewards.tolist() == [0, 1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]
    assert prepared.state is not None and prepared.state.argmax(axis=1).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("group", [None, "concatenate", "sum"])
def test_continuous_actions_are_concatenated_or_summed(tmp_path: Path, group: Any) -> None:
    actions = np.stack([np.arange(11), 100 * np.arange(11)], axis=1).astype(np.float32)
    actions[0] = np.nan
    prepared = Preparation(fps=15, group_actions=group).of(recorded(tmp_path, actions=actions))
    assert shown(prepared) == [0, 2, 4, 6, 8, 10]
    assert prepared.actions is not None and prepared.actions.dtype == np.float32
    if group == "sum":
        assert prepared.actions.tolist() == [[0, 0], [3, 300], [7, 700], [11, 1100], [15, 1500], [19, 1900]]
        assert prepared.action_space == {"kind": "continuous", "size": 2}
    else:
        assert prepared.actions[:3].tolist() == [[0, 0, 0, 0], [1, 100, 2, 200], [3, 300, 4, 400]]
        assert (prepared.action_space["kind"], prepared.action_space["size"]) == ("continuous", 4)


def test_actions_of_several_parts_become_a_tuple_of_them(tmp_path: Path) -> None:
    space = {"type": "Dict", "spaces": [["gear", {"type": "Discrete", "n": 3}], ["wheel", BOX]]}
    actions = np.stack([ACTIONS % 3, np.arange(11) / 16], axis=1).astype(np.float32)
    episode = recorded(tmp_path, actions=actions, action_space=json.dumps(space))
    prepared = Preparation(fps=15).of(episode)
    assert prepared.actions is not None and prepared.actions[1].tolist() == [1, 1 / 16, 2, 2 / 16]
    assert (prepared.action_space["kind"], prepared.action_space["size"]) == ("mixed", 4)
    assert prepared.action_space["space"] == {"type": "Tuple", "spaces": [space, space]}
    with pytest.raises(ValueError, match="group_actions must be concatenate for actions with choices"):
        _ = Preparation(fps=15, group_actions="sum").of(episode).actions


def test_the_frame_that_ended_an_episode_is_kept_with_its_reward(tmp_path: Path) -> None:
    rewards = np.array([0] * 10 + [5.0])
    ended = recorded(tmp_path, actions=ACTIONS, num_actions=3, rewards=rewards, terminated=True)
    prepared = Preparation(fps=10).of(ended)
    assert shown(prepared) == [1, 4, 7, 10] and prepared.terminated
    assert prepared.actions is not None and prepared.actions.tolist() == [[0] * 3, [2, 0, 1], [2, 2, 1], [0, 1, 1]]
    assert prepared.rewards is not None and prepared.rewards.tolist() == [0, 0, 0, 5]


@pytest.mark.parametrize(
    ("fps", "group", "actions", "message"),
    [
        (12, None, ACTIONS, "fps must be its rate of 30 divided by a whole number, got 12; .* 15 and 10"),
        (
            60,
            None,
            ACTIONS,
            "fps must be its rate of 30 divided by a whole number, got 60; the nearest that fit are 30",
        ),
        (15, "sum", ACTIONS, "group_actions must be concatenate for actions with choices"),
    ],
)
def test_rates_and_groups_that_actions_do_not_allow_are_refused(
    tmp_path: Path, fps: float, group: Any, actions: np.ndarray, message: str
) -> None:
    episode = recorded(tmp_path, 61, actions=np.resize(actions, 61), num_actions=10)
    prepared = Preparation(fps=fps, group_actions=group).of(episode)
    with pytest.raises(ValueError, match=message):
        _ = (prepared.num_frames, prepared.action_space)


def test_a_rate_just_below_a_whole_one_counts_as_it(tmp_path: Path) -> None:
    episode = recorded(tmp_path, fps=30000 / 1001, actions=ACTIONS, num_actions=10)
    assert shown(Preparation(fps=10).of(episode)) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 8)}, "size must be a height and a width in 1"),
        ({"size": (8, 8, 8)}, "size must be"),
        ({"fps": 0}, "fps must be above 0"),
        ({"fit": "pad"}, "fit must be left out without size"),
        ({"size": (8, 8), "fit": "cut"}, "fit must be"),
        ({"group_actions": "sum"}, "group_actions must be left out without fps"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preparation(**settings)


def test_settings_are_read_back_as_they_are_in_effect() -> None:
    for preparation in (
        Preparation(size=(64, 96)),
        Preparation(size=(64, 96), fit="pad", fps=10),
        Preparation(fps=7.5, group_actions="sum"),
    ):
        assert Preparation.from_facts(preparation.facts()).facts() == preparation.facts()
    assert Preparation(size=(64, 96)).facts() == Preparation(size=(64, 96), fit="crop").facts()
    with pytest.raises(ValueError, match="it has size, fit, fps and group_actions"):
        Preparation.from_facts({"scale": 2})
