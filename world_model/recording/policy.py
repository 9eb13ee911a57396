"""What plays a recording's games: any policy, by default a random one that covers all actions evenly."""

from collections.abc import Callable

import numpy as np

Policy = Callable[[np.ndarray], int]  # the frame that is shown, uint8 (h, w, 3) as the emulator draws it -> an action
# Makes an episode's policy from the number of actions, `RecordConfig.hold` and the generator of its random numbers.
MakePolicy = Callable[[int, tuple[int, int], np.random.Generator], Policy]


class CoveringPolicy:
    """Takes all actions equally often, in random order, and holds each for a random number of frames.

    `hold` is the smallest and the largest number of frames, both included. Each call returns the next frame's action,
    whatever the current frame shows.

    Example:
        >>> policy = CoveringPolicy(3, (2, 2), np.random.default_rng(0))
        >>> actions = [policy() for _ in range(6)]
        >>> sorted(actions), actions[0::2] == actions[1::2]
        ([0, 0, 1, 1, 2, 2], True)
    """

    def __init__(self, num_actions: int, hold: tuple[int, int], rng: np.random.Generator) -> None:
        self.num_actions, self.hold, self.rng = num_actions, hold, rng
        self._bag: list[int] = []  # actions left before any is repeated
        self._action, self._frames_left = 0, 0

    def __call__(self, frame: np.ndarray | None = None) -> int:
        if self._frames_left == 0:
            if not self._bag:
                self._bag = self.rng.permutation(self.num_actions).tolist()
            self._action = self._bag.pop()
            self._frames_left = int(self.rng.integers(self.hold[0], self.hold[1], endpoint=True))
        self._frames_left -= 1
        return self._action
