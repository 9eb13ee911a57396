"""An Atari game, played frame by frame."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

EMULATOR_FPS = 60


def make_game(env: str, *, sticky_actions: float, minimal_actions: bool) -> Any:
    """A gymnasium environment of an Atari game that shows every frame of the emulator as RGB.

    Raises:
        ValueError: the game is unknown, or the packages that play it are not installed.
    """
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
        return gymnasium.make(
            env,
            obs_type="rgb",
            frameskip=1,
            repeat_action_probability=sticky_actions,
            full_action_space=not minimal_actions,
            disable_env_checker=True,
        )
    except gymnasium.error.Error as error:
        raise ValueError(
            f"RecordConfig: env must be one of gymnasium's Atari games, such as ALE/Boxing-v5, got {env!r} ({error})."
        ) from None


def play_game(
    game: Any, policy: Callable[[], int], *, seed: int, frames: int, frame_skip: int, warmup: int
) -> Iterator[tuple[int, np.ndarray]]:
    """One game: yields `(action, frame)`, the frame (h, w, 3) and the action that led to it, until the game ends or
    `frames` frames were shown. The first action is 0. The `warmup` frames before it are not shown."""
    observation, _ = game.reset(seed=seed)
    for _ in range(warmup):
        observation, over = _step(game, 0, frame_skip)
        if over:
            return
    yield 0, observation
    for _ in range(frames - 1):
        action = policy()
        observation, over = _step(game, action, frame_skip)
        yield action, observation
        if over:
            return


def _step(game: Any, action: int, frame_skip: int) -> tuple[np.ndarray, bool]:
    """Hold an action for `frame_skip` emulator frames; -> the pixelwise maximum of the last two, and whether the game
    is over. Many games draw their sprites only on every other frame."""
    frames: list[np.ndarray] = []
    over = False
    while len(frames) < frame_skip and not over:
        frame, _, terminated, truncated, _ = game.step(action)
        frames.append(frame)
        over = terminated or truncated
    return np.max(frames[-2:], axis=0), over
