"""The policies of the gallery, in their environments: what they do to the block and to the car."""

import importlib
import json
import math
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from places import ROOT

from world_model.recording.environment import EnvironmentGame
from world_model.recording.game import PlayedFrame


@pytest.fixture(scope="module")
def play(examples_path: None) -> ModuleType:
    return importlib.import_module("gallery_play")


def test_the_way_to_push_a_block_goes_around_it_and_then_through_it(play: ModuleType) -> None:
    block = np.array([256.0, 256.0])
    for seed in range(20):
        for pusher in (np.array([100.0, 256.0]), np.array([256.0, 400.0])):
            *before, aim = play.ways_through(block, pusher, np.random.default_rng(seed))
            direction = (aim - block) / np.linalg.norm(aim - block)
            assert (before[-1] - block) @ direction < -30  # behind the block, seen from where it is to go
            beyond = (pusher - block) @ direction >= 0
            assert len(before) == 1 + beyond
            if beyond:
                assert abs((before[0] - block) @ np.array([-direction[1], direction[0]])) > 100  # past its side


def test_the_driver_turns_towards_the_road(play: ModuleType) -> None:
    north = [(0.0, 0.0, 0.0, 3.0 * i) for i in range(40)]  # headings are 0, so the right is +x
    car = {"linearVelocity": (0.0, 0.0), "angle": 0.0}
    for x, sign in ((-8.0, 1), (0.0, 0), (8.0, -1)):
        hull = SimpleNamespace(position=(x, 0.0), **car)
        assert np.sign(play.angle_to_road(north, hull, 0.0, 24.0)) == sign
    hull = SimpleNamespace(position=(0.0, 0.0), **car)
    assert play.angle_to_road(north, hull, 4.0, 0.0) == pytest.approx(math.atan2(4.0, 6.0))  # two places ahead


def played(name: str, policy: object, frames: int, **settings: object) -> list[PlayedFrame]:
    with EnvironmentGame(name, frame_skip=2, env_kwargs=settings) as game:
        made = policy(game.env, (1, 1), np.random.default_rng(0))  # type: ignore[operator]
        return list(game.play(made, seed=1, frames=frames))


@pytest.mark.slow
def test_the_pusher_moves_the_block(play: ModuleType) -> None:
    """Random actions do so as well, but leave it at a wall."""
    shown = played("gym_pusht:gym_pusht/PushT-v0", play.push, 150)
    places = np.stack([frame.state for frame in shown if frame.state is not None])[:, 2:4]
    moved = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert (moved > 0.5).mean() > 0.15 and np.ptp(places, axis=0).max() > 60
    targets = np.stack([frame.action for frame in shown[1:]])
    steps = np.linalg.norm(np.diff(targets, axis=0), axis=1)
    assert (
        steps.max() < play.PUSH_SPEEDS[1] + 15 and np.ptp(targets, axis=0).min() > 150
    )  # smooth, and all over the field


DRIVE = """
import json
import gallery_play
import numpy as np
from world_model.recording.environment import EnvironmentGame
with EnvironmentGame("CarRacing-v3", frame_skip=2, env_kwargs={}) as game:
    driver = gallery_play.drive(game.env, (1, 1), np.random.default_rng(0))
    print(json.dumps([[frame.reward, float(frame.action[0])] for frame in game.play(driver, seed=1, frames=150)]))
"""


@pytest.mark.slow
def test_the_driver_follows_the_road_and_swerves() -> None:
    """In a process of its own: Box2D crashed in one that had trained before."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
    done = subprocess.run([sys.executable, "-c", DRIVE], env=env, check=True, capture_output=True, text=True)
    rewards, steering = np.array(json.loads(done.stdout.splitlines()[-1])).T
    assert rewards.sum() > 40  # each place of the road that is reached gives 3; standing costs
    assert steering.min() < -0.5 and steering.max() > 0.5
