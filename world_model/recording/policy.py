"""What plays a recording: policies, and those for any action space: at random, or covering it evenly."""

import copy
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium import Env, Space, spaces

Policy = Callable[[Any], Any]  # an observation, in Atari the frame that is shown -> an action of the action space
# Makes an episode's policy from the environment, `RecordConfig.hold` and the generator of its random numbers.
MakePolicy = Callable[["Env[Any, Any]", tuple[int, int], np.random.Generator], Policy]
Draw = Callable[[], Any]

STRATA = 16  # intervals of equal probability into which a continuous component is divided


class HeldPolicy:
    """Holds each action that it draws for a random number of calls, whatever the observation.

    `hold` is the smallest and the largest number of calls, both included.
    """

    def __init__(self, draw: Draw, hold: tuple[int, int], rng: np.random.Generator) -> None:
        self.draw, self.hold, self.rng = draw, hold, rng
        self._action: Any = None
        self._calls_left = 0

    def __call__(self, observation: Any = None) -> Any:
        if self._calls_left == 0:
            self._action = self.draw()
            self._calls_left = int(self.rng.integers(self.hold[0], self.hold[1], endpoint=True))
        self._calls_left -= 1
        return self._action


class CoveringPolicy(HeldPolicy):
    """Takes all of `num_actions` actions equally often, in random order, and holds each.

    Example:
        >>> policy = CoveringPolicy(3, (2, 2), np.random.default_rng(0))
        >>> actions = [policy() for _ in range(6)]
        >>> sorted(actions), actions[0::2] == actions[1::2]
        ([0, 0, 1, 1, 2, 2], True)
    """

    def __init__(self, num_actions: int, hold: tuple[int, int], rng: np.random.Generator) -> None:
        super().__init__(_Bag(num_actions, rng), hold, rng)


def covering(env: "Env[Any, Any]", hold: tuple[int, int], rng: np.random.Generator) -> Policy:
    """A policy that covers the environment's action space evenly, and holds each action; see `covering_draw`."""
    return HeldPolicy(covering_draw(env.action_space, rng), hold, rng)


def random(env: "Env[Any, Any]", hold: tuple[int, int], rng: np.random.Generator) -> Policy:
    """A policy whose actions are samples of the environment's action space, each held."""
    space = copy.deepcopy(env.action_space)
    space.seed(int(rng.integers(2**31)))
    return HeldPolicy(space.sample, hold, rng)


def covering_draw(space: "Space[Any]", rng: np.random.Generator) -> Draw:
    """Draws actions of a space, one with each call, so that every part of it is covered evenly.

    Choices come equally often, in random order. A continuous component comes from each of `STRATA` intervals of equal
    probability once before any comes again: of a uniform distribution between its bounds, of a normal one without
    bounds, and of an exponential one from its only bound. The parts of a nested space are drawn independently.

    Raises:
        ValueError: the space has a part of another kind.

    Example:
        >>> from gymnasium import spaces
        >>> draw = covering_draw(spaces.Box(-1, 1, (2,)), np.random.default_rng(0))
        >>> drawn = np.stack([draw() for _ in range(STRATA)])
        >>> np.histogram(drawn[:, 1], bins=STRATA, range=(-1, 1))[0].tolist() == [1] * STRATA
        True
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        bag, start = _Bag(int(space.n), rng), int(space.start)
        return lambda: start + bag()
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        if isinstance(space, spaces.MultiDiscrete):
            sizes, starts = space.nvec, space.start
        else:
            sizes, starts = np.full(space.shape, 2), np.zeros(space.shape, int)
        bags, dtype = [_Bag(int(size), rng) for size in sizes.flat], space.dtype
        return lambda: (starts + np.reshape([bag() for bag in bags], starts.shape)).astype(dtype)
    if isinstance(space, spaces.Box):
        return _covering_box(space, rng)
    if isinstance(space, spaces.Dict):
        named = {name: covering_draw(part, rng) for name, part in space.spaces.items()}
        return lambda: {name: draw() for name, draw in named.items()}
    if isinstance(space, spaces.Tuple):
        draws = [covering_draw(part, rng) for part in space.spaces]
        return lambda: tuple(draw() for draw in draws)
    raise ValueError(
        "record: policy covering takes Discrete, MultiDiscrete, MultiBinary and Box spaces, and Dict and Tuple of "
        f"them, got {space}; choose another policy."
    )


def _covering_box(space: "spaces.Box", rng: np.random.Generator) -> Draw:
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    above, below = np.isfinite(low), np.isfinite(high)  # whether there is a bound
    whole = np.issubdtype(space.dtype, np.integer)
    bags = [_Bag(STRATA, rng) for _ in low]
    normal = NormalDist()

    def component(i: int) -> float:
        share = (bags[i]() + rng.random()) / STRATA
        if above[i] and below[i]:
            value = float(low[i] + share * (high[i] - low[i] + whole))
            return np.floor(value) if whole else value
        if not above[i] and not below[i]:
            return normal.inv_cdf(max(share, 1e-12))
        away = -float(np.log1p(-share))
        return float(low[i]) + away if above[i] else float(high[i]) - away

    def draw() -> np.ndarray:
        values = np.array([component(i) for i in range(len(bags))])
        return np.clip(values.reshape(space.shape).astype(space.dtype), space.low, space.high)

    return draw


class _Bag:
    """Draws each of 0..size-1 once, in random order, before any comes again."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self._left: list[int] = []

    def __call__(self) -> int:
        if not self._left:
            self._left = self.rng.permutation(self.size).tolist()
        return self._left.pop()
