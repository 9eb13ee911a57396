"""BoxingPolicy: plays Boxing at random, and at times towards the opponent or away from it.

A random player seldom meets the opponent, so a world model trained on random play alone sees few punches and clinches.
"""

from typing import Any

import numpy as np

from world_model.recording.policy import CoveringPolicy

RING = (slice(40, 174), slice(36, 126))  # rows and columns inside the ropes, of the emulator's 210x160
WHITE, BLACK = (214, 214, 214), (0, 0, 0)  # the player, the opponent
MOODS = {"random": 0.5, "seek": 0.35, "avoid": 0.15}  # and their probabilities
MOOD_FRAMES = (20, 120)  # a mood's smallest and largest duration
REACH = (12, 20)  # columns between the boxers' centers at which punches land
CLOSE_ROWS = 30  # rows between the centers below which a punch may land
# ALE's actions, without and with a punch, by direction (down, right), each -1, 0 or 1.
ACTIONS = {
    (0, 0): (0, 1),
    (-1, 0): (2, 10),
    (0, 1): (3, 11),
    (0, -1): (4, 12),
    (1, 0): (5, 13),
    (-1, 1): (6, 14),
    (-1, -1): (7, 15),
    (1, 1): (8, 16),
    (1, -1): (9, 17),
}


class BoxingPolicy:
    """A policy for `record` that covers all actions at random, seeks the opponent and punches, or keeps away.

    It changes between the three after random numbers of frames.
    """

    def __init__(self, env: Any, hold: tuple[int, int], rng: np.random.Generator) -> None:
        num_actions = int(env.action_space.n)
        if num_actions != 18:
            raise ValueError(f"BoxingPolicy: num_actions must be 18, all actions of Boxing, got {num_actions}.")
        self.covering = CoveringPolicy(num_actions, hold, rng)
        self.hold, self.rng = hold, rng
        self._mood, self._mood_frames_left = "random", 0
        self._action, self._frames_left = 0, 0

    def __call__(self, frame: np.ndarray) -> int:
        if self._mood_frames_left == 0:
            self._mood = str(self.rng.choice(list(MOODS), p=list(MOODS.values())))
            self._mood_frames_left = int(self.rng.integers(*MOOD_FRAMES, endpoint=True))
            self._frames_left = 0
        self._mood_frames_left -= 1
        if self._mood == "random":
            return self.covering()
        if self._frames_left == 0:
            offset = offset_to_opponent(frame)
            self._action = self.seek(*offset) if self._mood == "seek" else self.avoid(*offset)
            self._frames_left = int(self.rng.integers(1, self.hold[0], endpoint=True))
        self._frames_left -= 1
        return self._action

    def seek(self, down: float, right: float) -> int:
        """An action that brings the opponent, `down` rows and `right` columns away, into reach, often with a punch."""
        columns = abs(right)
        across = int(np.sign(right)) * ((columns > REACH[1]) - (columns < REACH[0]))
        along = int(np.sign(down)) * (abs(down) > self.rng.integers(0, 24))  # fists are above and below the head
        in_reach = columns <= REACH[1] + 4 and abs(down) < CLOSE_ROWS
        return ACTIONS[along, across][int(self.rng.random() < (0.5 if in_reach else 0.1))]

    def avoid(self, down: float, right: float) -> int:
        """An action away from the opponent, now and then a random one, so that the player leaves corners again."""
        along, across = -int(np.sign(down)), -int(np.sign(right))
        if self.rng.random() < 0.3:
            along, across = int(self.rng.integers(-1, 2)), int(self.rng.integers(-1, 2))
        return ACTIONS[along, across][int(self.rng.random() < 0.1)]


def offset_to_opponent(frame: np.ndarray) -> tuple[float, float]:
    """Rows down and columns right from the player to the opponent; (0, 0) if one of them is not visible."""
    ring = frame[RING]
    centers = []
    for color in (WHITE, BLACK):
        pixels = np.argwhere((ring == np.array(color, ring.dtype)).all(-1))
        if not len(pixels):
            return 0.0, 0.0
        centers.append(pixels.mean(0))
    down, right = centers[1] - centers[0]
    return float(down), float(right)
