"""The policy that plays Boxing for its world model, on frames drawn by hand and in the game."""

import importlib
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from world_model.recording.game import AtariGame
from world_model.recording.policy import MakePolicy, covering


@pytest.fixture(scope="module")
def play(examples_path: None) -> ModuleType:
    return importlib.import_module("boxing_play")


def env(num_actions: int) -> SimpleNamespace:
    return SimpleNamespace(action_space=Discrete(num_actions))


def frame(player: tuple[int, int] | None, opponent: tuple[int, int] | None) -> np.ndarray:
    """A frame with boxers of 20x10 pixels whose upper left corners are at the given rows and columns."""
    picture = np.full((210, 160, 3), (110, 156, 66), np.uint8)
    for corner, color in ((player, (214, 214, 214)), (opponent, (0, 0, 0))):
        if corner is not None:
            picture[corner[0] : corner[0] + 20, corner[1] : corner[1] + 10] = color
    return picture


def test_the_offset_leads_from_the_player_to_the_opponent(play: ModuleType) -> None:
    assert play.offset_to_opponent(frame((50, 40), (150, 110))) == (100.0, 70.0)
    assert play.offset_to_opponent(frame((50, 40), None)) == play.offset_to_opponent(frame(None, (50, 40))) == (0, 0)


def test_seeking_goes_towards_the_opponent_and_avoiding_away(play: ModuleType) -> None:
    policy = play.BoxingPolicy(env(18), (3, 12), np.random.default_rng(0))
    assert {policy.seek(100, 70) for _ in range(50)} == {8, 16}  # down and right, without a punch or with one
    assert {policy.seek(0, -100) for _ in range(50)} == {4, 12}  # left
    away = [policy.avoid(100, 70) for _ in range(300)]
    assert np.isin(away, [7, 15]).mean() > 0.65  # up and left, except for the random ones
    assert len(set(away)) > 6


def test_a_boxer_in_reach_stays_and_punches_more(play: ModuleType) -> None:
    policy = play.BoxingPolicy(env(18), (3, 12), np.random.default_rng(0))
    near, far = ([policy.seek(0, right) for _ in range(300)] for right in (16, 80))
    assert set(near) == {0, 1} and np.mean(np.array(near) == 1) > 0.4
    assert set(far) == {3, 11} and np.mean(np.array(far) == 11) < 0.2


def test_all_actions_are_played(play: ModuleType) -> None:
    policy = play.BoxingPolicy(env(18), (3, 12), np.random.default_rng(0))
    shown = frame((50, 40), (60, 60))
    assert {policy(shown) for _ in range(2000)} == set(range(18))


def test_a_game_with_other_actions_is_refused(play: ModuleType) -> None:
    with pytest.raises(ValueError, match="num_actions must be 18, all actions of Boxing, got 6"):
        play.BoxingPolicy(env(6), (3, 12), np.random.default_rng(0))


def test_boxers_meet_more_often_than_in_random_play(play: ModuleType) -> None:
    pytest.importorskip("ale_py")

    def meetings(make_policy: MakePolicy) -> int:
        """Frames of a game in which a punch may land."""
        policy = make_policy(env(18), (3, 12), np.random.default_rng(1))
        settings = {"frame_skip": 2, "warmup": 0, "sticky_actions": 0.0, "minimal_actions": True}
        with AtariGame("ALE/Boxing-v5", **settings) as game:
            offsets = [play.offset_to_opponent(shown.frame) for shown in game.play(policy, seed=1, frames=400)]
        return sum(abs(down) < 30 and 0 < abs(right) <= 24 for down, right in offsets)

    assert meetings(play.BoxingPolicy) > 1.5 * meetings(covering)
