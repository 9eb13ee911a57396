"""Any gymnasium environment is recorded: what it was given, what it showed, and what came with it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import contents
from toy_envs import ACTIONS, push

from vidtok_plugin.video import RecordedEpisode, find_episodes, read_frames
from world_model import cli
from world_model.recording.environment import EnvironmentGame
from world_model.recording.parallel import SplitTotals
from world_model.recording.record import RecordConfig, record, replay


def config(output: Path, *, game: dict[str, Any] | None = None, **changes: Any) -> RecordConfig:
    tiny = RecordConfig(
        env="toy_envs:toy/Ball-v0",
        output=str(output),
        train_episodes=1,
        validation_episodes=0,
        test_episodes=0,
        frames_per_episode=24,
        min_frames=5,
        size=16,
        hold=(1, 3),
        crf=0,
        env_kwargs=game or {},
    )
    return dataclasses.replace(tiny, **changes)


def recorded(output: Path, **changes: Any) -> list[RecordedEpisode]:
    record(config(output, **changes), show_progress=False)
    return find_episodes(output)


@pytest.mark.parametrize("name", ["box", "choice", "choices", "buttons", "nested", "pair"])
def test_actions_of_every_kind_led_to_their_frames(tmp_path: Path, name: str) -> None:
    (episode,) = recorded(tmp_path, game={"actions": name})
    space = episode.meta["action_space"]
    game = EnvironmentGame("toy_envs:toy/Ball-v0", frame_skip=1, env_kwargs={"actions": name})
    assert episode.actions.dtype == (np.int64 if name == "choice" else np.float32)
    assert space["size"] == (3 if name == "choice" else episode.actions.shape[1])
    moved = np.stack([push(game.action(row)) for row in episode.actions[1:]])
    assert episode.state is not None and len(np.unique(moved, axis=0)) > 2
    expected = np.clip(episode.state[:-1] + moved, 1, 15)
    np.testing.assert_allclose(episode.state[1:], expected, atol=1e-5)
    replayed = replay(episode.meta, episode.actions)
    video = read_frames(episode.path)
    assert replayed.shape == video.shape == (24, 16, 16, 3)
    assert np.abs(video.astype(int) - replayed).max() < 8  # of 160 between ball and field
    if name != "choice":
        assert all(ACTIONS[name].contains(game.action(row)) for row in episode.actions[1:])


def test_an_episode_has_what_the_environment_gave(tmp_path: Path) -> None:
    """Not shifted by a frame: the frame, state and reward of the same step."""
    (episode,) = recorded(tmp_path, game={"lengths": [20, 20]}, frames_per_episode=21)
    assert episode.state is not None and episode.rewards is not None
    assert episode.num_frames == 21 and episode.fps == 12 and episode.size == (16, 16)
    assert episode.rewards[0] == 0
    np.testing.assert_allclose(episode.rewards[1:], np.diff(episode.state[:, 1]), atol=1e-5)
    bright = episode.read(range(21))[..., 0] > 170
    for frame, place in zip(bright, episode.state, strict=True):
        down, right = np.argwhere(frame).max(0) - 1
        assert abs(right - place[0]) < 0.51 and abs(down - place[1]) < 0.51
    assert (episode.terminated, episode.meta["truncated"]) == (False, True)
    assert episode.meta["state"] == {"size": 2}


@pytest.mark.parametrize(("length", "terminated"), [(15, True), (16, False)])
def test_an_episode_ends_where_its_game_does(tmp_path: Path, length: int, terminated: bool) -> None:
    episodes = recorded(tmp_path, game={"lengths": [length, length]})
    assert [episode.num_frames for episode in episodes] == [length + 1] * 2  # 24 frames were asked for
    assert [episode.terminated for episode in episodes] == [terminated] * 2
    assert [episode.meta["truncated"] for episode in episodes] == [not terminated] * 2


def test_a_frame_may_cover_several_steps(tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path, frame_skip=4, frames_per_episode=10, game={"lengths": [35, 35]})
    assert episode.num_frames == 10 and episode.fps == 3 and episode.terminated
    assert episode.rewards is not None and episode.state is not None
    np.testing.assert_allclose(episode.rewards[1:], np.diff(episode.state[:, 1]), atol=1e-5)
    place = episode.state[0].astype(np.float64)
    for step, (action, after) in enumerate(zip(episode.actions[1:], episode.state[1:], strict=True)):
        for _ in range(3 if step == 8 else 4):  # the game ends after 35 steps
            place = np.clip(place + action, 1, 15)
        np.testing.assert_allclose(after, place, atol=1e-5)


def test_the_state_is_the_vectors_among_the_observations(tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path / "both", game={"observations": "both"})
    assert episode.state is not None and episode.state.shape == (24, 3)
    assert episode.state[:, 2].tolist() == list(range(24))
    assert episode.meta["state"]["parts"] == [{"name": "robot.place", "size": 2}, {"name": "robot.time", "size": 1}]
    (episode,) = recorded(tmp_path / "picture", game={"observations": "picture"})
    assert episode.state is None and "state" not in episode.meta


def test_frames_are_resized_to_height_and_width(tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path, size=(24, 40))
    assert episode.size == (24, 40) and episode.meta["recipe"]["size"] == [24, 40]
    assert replay(episode.meta, episode.actions).shape == (24, 24, 40, 3)
    record(config(tmp_path, size=(24, 40)), show_progress=False)  # nothing is missing


def test_the_same_seed_gives_the_same_recording(tmp_path: Path) -> None:
    for policy in ("covering", "random", "toy_envs:to_the_middle"):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            recorded(tmp_path / policy / name, seed=seed, policy=policy, frames_per_episode=8)
        a, b, c = (contents(tmp_path / policy / name) for name in "abc")
        assert a == b and a != c
    covering, random = (find_episodes(tmp_path / policy / "a")[0] for policy in ("covering", "random"))
    assert not np.array_equal(covering.actions, random.actions)


def test_lost_states_are_recorded_again_and_other_policies_refused(tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path)
    before = contents(tmp_path)
    episode.path.with_suffix(".state.npy").unlink()
    record(config(tmp_path), show_progress=False)
    assert contents(tmp_path) == before
    for changes, message in (
        ({"policy": "random"}, "recorded with policy='covering', not 'random'"),
        ({"game": {"lengths": [9, 9]}}, r"recorded with env_kwargs=None, not {'lengths': \[9, 9\]}"),
        ({"seed": 3}, "recorded with seed=0, not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            record(config(tmp_path, **changes), show_progress=False)
    assert contents(tmp_path) == before


def test_an_episode_shows_nothing_of_earlier_games(tmp_path: Path) -> None:
    """PushT draws the last action of the game before; an episode depended on what its process had recorded."""
    episodes = recorded(tmp_path, train_episodes=2, policy="toy_envs:to_the_middle", game={"picture": "counts"})
    assert {round(float(episode.read([0])[0, 0].mean())) for episode in episodes} == {40}  # its first game
    assert (replay(episodes[1].meta, episodes[1].actions)[3, 0] == 40).all()


def test_games_that_are_too_short_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"100 games of .* in a row ended before 20 frames; lower min_frames\."):
        record(config(tmp_path / "play", min_frames=20, game={"lengths": [3, 3]}), show_progress=False)
    assert not (tmp_path / "play").exists()


FLAWS: list[tuple[dict[str, Any], str]] = [
    ({"env": "Nonesuch-v0"}, "env must be an environment that is registered with gymnasium, got 'Nonesuch-v0'"),
    ({"env": "toy_envs:toy/Bell-v0"}, "Did you mean: `Ball`"),
    ({"env": "nonesuch:Some-v0"}, "needs the module nonesuch, which cannot be imported .*; install the package"),
    ({"game": {"picture": "fails"}}, "cannot be played: pygame is not installed, run `pip install pygame`; install it"),
    ({"game": {"modes": ["human"]}}, r"must be able to render pictures \(render_mode='rgb_array'\), but .* human"),
    ({"game": {"modes": []}}, "renders nothing; choose another"),
    ({"game": {"picture": "none"}}, r"must render uint8 arrays \(h, w, 3\), got NoneType"),
    ({"game": {"picture": "float"}}, r"got float64 of \(16, 16, 3\)"),
    ({"game": {"picture": "grey"}}, r"got uint8 of \(16, 16\)"),
    ({"game": {"fps": None}}, r"fps must be given for .*, whose metadata has no render_fps; add fps=30"),
    ({"game": {"colour": 3}}, "cannot be made: TypeError: .*colour.*; correct env or env_kwargs"),
    ({"game": {"actions": "words"}}, "actions must be of Discrete, MultiDiscrete, .* spaces"),
    ({"sticky_actions": 0.1}, "sticky_actions must be 0.0 for toy_envs:.*, because it is for Atari games, got 0.1"),
    ({"warmup": 3}, "warmup must be 0 for"),
    ({"policy": "clever"}, "policy must be covering, random, module:function, or the path of a .zip"),
    ({"policy": "nonesuch:policy"}, "policy nonesuch:policy cannot be imported .*No module named 'nonesuch'"),
    ({"policy": "toy_envs:nonesuch"}, "policy toy_envs:nonesuch cannot be imported .*has no attribute 'nonesuch'"),
    ({"policy": "toy_envs:NO_FUNCTION"}, "policy toy_envs:NO_FUNCTION must be a function, got int"),
    ({"policy": "toy_envs:no_policy"}, r"must make an episode's policy, a function of the observation, .* got ndarray"),
    ({"policy": "toy_envs:out_of_range"}, r"policy must return an action of Box\(.*got array\(\[0., 3.\]\); correct"),
    ({"policy": "nowhere.zip"}, "policy nowhere.zip must be a file, but there is none"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FLAWS)
def test_what_cannot_be_recorded_is_named_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        record(config(tmp_path / "play", **changes), show_progress=False)
    assert not (tmp_path / "play").exists()


def test_a_missing_gymnasium_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"needs gymnasium, .*; run: pip install 'vidtok-plugin\[envs\]'"):
        record(config(tmp_path / "play"), show_progress=False)
    assert not (tmp_path / "play").exists()


def test_an_invalid_action_later_leaves_no_half_episode(tmp_path: Path) -> None:
    class Wanders:
        """Its actions become invalid in the second episode."""

        games = 0

        def __init__(self, *_: Any) -> None:
            type(self).games += 1

        def __call__(self, _: Any) -> np.ndarray:
            return np.full(2, np.nan if self.games == 3 else 0.5)

    with pytest.raises(ValueError, match=r"must return an action of Box\(.*, got array\(\[nan, nan\]\)"):
        record(config(tmp_path, train_episodes=2), policy=Wanders, show_progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        f"episode_00000.{suffix}" for suffix in ("actions.npy", "json", "mp4", "rewards.npy", "state.npy")
    ]


def test_pictures_of_one_color_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recording of a driving simulator was black, because of how its graphics library was set up."""
    with caplog.at_level(logging.WARNING):
        recorded(tmp_path / "a")
        assert "one color" not in caplog.text
        recorded(tmp_path / "b", game={"picture": "black"})
    assert "toy/Ball-v0 renders a first frame of one color" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"game": {"render_mode": "human"}}, "env_kwargs must not have render_mode"),
        ({"game": {"colour": {3}}}, "env_kwargs must be values that JSON can hold"),
        ({"processes": 0}, "processes must be at least 1, got 0"),
        ({"size": (16, 4)}, r"size must be at least 8, got \(16, 4\)"),
    ],
)
def test_config_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_the_command_takes_environment_policy_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = "--env toy_envs:toy/Ball-v0 --policy toy_envs:to_the_middle env_kwargs.observations=vector size=[16,24]"
    sizes = "train_episodes=1 validation_episodes=0 test_episodes=0 frames_per_episode=9 min_frames=2"
    arguments = ["record", *chosen.split(), *sizes.split(), "--output", str(tmp_path)]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    (episode,) = find_episodes(tmp_path)
    assert episode.size == (16, 24) and episode.meta["policy"] == "toy_envs:to_the_middle"
    assert episode.state is not None and np.abs(episode.state[-1] - 8).max() < 2.5
    assert episode.meta["recipe"]["env_kwargs"] == {"observations": "vector"}


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_recording(tmp_path: Path) -> None:
    """Games of many lengths, so that episodes are finished out of order, and some are not needed."""
    settings: dict[str, Any] = {"train_episodes": 3, "validation_episodes": 1, "game": {"lengths": [3, 40]}}
    settings["policy"] = "toy_envs:to_the_middle"
    record(config(tmp_path / "1", **settings), show_progress=False)
    record(config(tmp_path / "3", processes=3, **settings), show_progress=False)
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert one == three and len(one) > 5 * 4
    for name in ("train/episode_00001.mp4", "train/episode_00002.json"):
        (tmp_path / "3" / name).unlink()
    record(config(tmp_path / "3", processes=2, **settings), show_progress=False)
    assert contents(tmp_path / "3") == one


def test_episodes_finished_in_any_order_make_the_same_split() -> None:
    """As many as are needed in the order of their numbers, whichever are finished first."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        frames = rng.integers(1, 20, 60).tolist()
        total, processes = int(rng.integers(1, 100)), int(rng.integers(1, 6))
        again = [(length, bool(rng.random() < 0.5)) for length in frames[: rng.integers(0, 4)]]
        needed = max(int(np.searchsorted(np.cumsum(frames), total)) + 1, len(again))
        totals = SplitTotals("train", total, again, show=lambda _: None)
        placed, running = [], []
        while True:
            while len(running) < processes and (number := totals.next()) is not None:
                running.append(number)
            if not running:
                break
            number = running.pop(int(rng.integers(len(running))))
            placed += totals.add(number, frames[number])
        assert sorted(placed) == [i for i in range(needed) if i >= len(again) or again[i][1]]
        assert [number for number in placed if number >= len(again)] == list(range(len(again), needed))
        assert totals.lengths == frames[:needed]


@pytest.mark.slow
def test_a_failing_process_is_reported_and_leaves_finished_episodes(tmp_path: Path) -> None:
    cfg = config(tmp_path, processes=2, train_episodes=4, game={"picture": "grows", "lengths": [4, 40]})
    with pytest.raises(ChildProcessError, match=r"Process \d of 2 failed: record: .* must render frames of one size"):
        record(cfg, show_progress=False)
    assert not any(path.name.startswith(".") for path in tmp_path.rglob("*"))


@pytest.mark.slow
def test_cartpole_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    (episode, *_) = recorded(tmp_path, env="CartPole-v1", size=(32, 48), policy="random", frames_per_episode=200)
    assert episode.fps == 50 and episode.terminated and episode.rewards is not None
    assert set(episode.actions.tolist()) == {0, 1} and episode.rewards[1:].tolist() == [1] * (episode.num_frames - 1)
    assert episode.state is not None and episode.state.shape == (episode.num_frames, 4)
    assert read_frames(episode.path, [0]).std() > 10
