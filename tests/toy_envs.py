"""A small gymnasium environment whose spaces, lengths and flaws are settings; registered as `toy/Ball-v0`."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

ACTIONS: dict[str, Space[Any]] = {
    "box": spaces.Box(-2, 2, (2,)),
    "choice": spaces.Discrete(3, start=-1),
    "few": spaces.Discrete(2),
    "choices": spaces.MultiDiscrete([3, 2]),
    "buttons": spaces.MultiBinary(2),
    "nested": spaces.Dict({"keys": spaces.MultiBinary(2), "mouse": spaces.Box(-1, 1, (1,), np.float64)}),
    "pair": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (1,))]),
    "words": spaces.Sequence(spaces.Discrete(2)),
}
PICTURE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
PLACE = spaces.Box(-np.inf, np.inf, (2,))
OBSERVATIONS: dict[str, Space[Any]] = {
    "vector": PLACE,
    "picture": PICTURE,
    "both": spaces.Dict({"picture": PICTURE, "robot": spaces.Dict({"place": PLACE, "time": spaces.Box(0, 99, (1,))})}),
}


def push(action: Any) -> np.ndarray:
    """How far an action of any of the spaces moves the ball, right and down."""
    if isinstance(action, dict):
        return np.array([action["keys"][0] - action["keys"][1], action["mouse"][0]], np.float64)
    if isinstance(action, tuple):
        return np.array([action[0] - 1, action[1][0]], np.float64)
    values = np.atleast_1d(np.asarray(action, np.float64))
    return values if len(values) == 2 else np.array([values[0], 0.0])


class Ball(gymnasium.Env[Any, Any]):
    """A ball on a grey field. An action moves it; its reward is how far down it moved, and it observes its place.

    A game ends after a number of steps that its seed draws from `lengths`: it is over, or truncated if the number is
    even.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        actions: str = "box",
        observations: str = "vector",
        lengths: Sequence[int] = (40, 60),
        modes: Sequence[str] = ("rgb_array",),
        fps: float | None = 12,
        picture: str = "right",
    ) -> None:
        self.render_mode, self.lengths, self.picture = render_mode, lengths, picture
        self.action_space, self.observation_space = ACTIONS[actions], OBSERVATIONS[observations]
        self.observed = observations
        self.games = 0  # this is not reset
        self.metadata = {"render_modes": list(modes), "render_fps": fps}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.games += 1
        self.place = self.np_random.uniform(4, 12, 2)
        self.left = int(self.np_random.integers(*self.lengths, endpoint=True))
        self.truncates, self.time = self.left % 2 == 0, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        before = self.place
        self.place = np.clip(before + push(action), 1, 15)
        self.left, self.time = self.left - 1, self.time + 1
        over = self.left == 0
        reward = float(self.place[1] - before[1])
        return self._observe(), reward, over and not self.truncates, over and self.truncates, {}

    def render(self) -> Any:
        frame = np.full((16, 16, 3), 90, np.uint8)
        right, down = np.rint(self.place).astype(int)
        frame[max(0, down - 2) : down + 2, max(0, right - 2) : right + 2] = 250
        if self.picture == "fails":
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install pygame`")
        flawed = {
            "float": frame / 255,
            "grey": frame[..., 0],
            "none": None,
            "grows": frame[: 8 + self.time],
            "black": np.zeros_like(frame),
            "counts": np.concatenate([np.full((2, 16, 3), min(40 * self.games, 255), np.uint8), frame[2:]]),
        }
        return frame if self.picture == "right" else flawed[self.picture]

    def _observe(self) -> Any:
        place = self.place.astype(np.float32)
        picture = np.zeros((4, 4, 3), np.uint8)
        robot = {"place": place, "time": np.array([self.time], np.float32)}
        return {"vector": place, "picture": picture, "both": {"picture": picture, "robot": robot}}[self.observed]


def to_the_middle(env: Any, hold: tuple[int, int], rng: np.random.Generator) -> Callable[[Any], Any]:
    """A policy that moves the ball towards the middle, with some noise; for actions `box`."""
    return lambda place: np.clip(8 - place + rng.normal(0, 0.5, 2), -2, 2)


def out_of_range(env: Any, hold: tuple[int, int], rng: np.random.Generator) -> Callable[[Any], Any]:
    return lambda place: np.array([0.0, 3.0])


def no_policy(env: Any, hold: tuple[int, int], rng: np.random.Generator) -> Any:
    return np.zeros(2)


NO_FUNCTION = 3
gymnasium.register("toy/Ball-v0", Ball)
