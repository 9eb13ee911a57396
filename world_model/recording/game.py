"""An Atari game, played frame by frame."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from world_model.recording.policy import Policy

EMULATOR_FPS = 60


class AtariGame:
    """An Atari game that shows one frame for every `frame_skip` frames of the emulator.

    `warmup` frames at the start of each game are played without action and not shown.

    Raises:
        ValueError: the game is unknown, or the packages that play it are not installed.
    """

    def __init__(
        self, name: str, *, frame_skip: int, warmup: int, sticky_actions: float, minimal_actions: bool
    ) -> None:
        self.frame_skip, self.warmup = frame_skip, warmup
        self.env = make_env(name, sticky_actions, minimal_actions)
        self.num_actions = int(self.env.action_space.n)
        self.action_meanings: list[str] = list(self.env.unwrapped.get_action_meanings())

    def __enter__(self) -> "AtariGame":
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    def play(self, policy: Policy, *, seed: int, frames: int) -> Iterator[tuple[int, np.ndarray]]:
        """Play one game: yields each frame (h, w, 3) with the action that led to it, at most `frames` of them.

        The first action is 0. The policy is called with each frame but the last and chooses the next action.
        """
        frame, _ = self.env.reset(seed=seed)
        for _ in range(self.warmup):
            frame, over = self._step(0)
            if over:
                return
        yield 0, frame
        for _ in range(frames - 1):
            action = policy(frame)
            frame, over = self._step(action)
            yield action, frame
            if over:
                return

    def _step(self, action: int) -> tuple[np.ndarray, bool]:
        """Hold an action for `frame_skip` emulator frames; -> the frame to show, and whether the game is over."""
        frames: list[np.ndarray] = []
        over = False
        while len(frames) < self.frame_skip and not over:
            frame, _, terminated, truncated, _ = self.env.step(action)
            frames.append(frame)
            over = terminated or truncated
        return np.max(frames[-2:], axis=0), over  # many games draw their sprites only on every other frame


def make_env(name: str, sticky_actions: float, minimal_actions: bool) -> Any:
    """The gymnasium environment of an Atari game, with RGB observations of every emulator frame."""
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise ValueError(
            f"record: playing Atari needs {error.name}, which is not installed; run: pip install 'vidtok-plugin[demo]'."
        ) from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    try:
        env = gymnasium.make(
            name,
            obs_type="rgb",
            frameskip=1,
            repeat_action_probability=sticky_actions,
            full_action_space=not minimal_actions,
            disable_env_checker=True,
        )
        if not hasattr(env.unwrapped, "get_action_meanings") or not hasattr(env.action_space, "n"):
            env.close()
            raise TypeError("it is a game of another kind")
    except (gymnasium.error.Error, TypeError, ImportError) as error:  # other games do not accept these arguments
        raise ValueError(
            f"RecordConfig: env must be one of gymnasium's Atari games, such as ALE/Boxing-v5, got {name!r} ({error})."
        ) from None
    return env
