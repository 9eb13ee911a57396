"""An Atari game, played frame by frame."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from world_model.recording.policy import Policy

EMULATOR_FPS = 60


@dataclass(frozen=True, kw_only=True)
class PlayedFrame:
    """A frame of a game, the action that led to it, and what came with it."""

    frame: np.ndarray  # uint8 (h, w, 3), as the emulator draws it
    action: int
    reward: float  # the sum over the emulator's frames that it covers
    terminated: bool  # the game is over
    truncated: bool  # the emulator stopped it, at a time limit for example

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class AtariGame:
    """An Atari game that shows one frame for every `frame_skip` frames of the emulator.

    `warmup` frames at the start of each game are played without action and not shown. With `end_on_life_loss`, a game
    is over as soon as a life is lost.

    Raises:
        ValueError: the game is unknown, or the packages that play it are not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        frame_skip: int,
        warmup: int,
        sticky_actions: float,
        minimal_actions: bool,
        end_on_life_loss: bool = False,
    ) -> None:
        self.frame_skip, self.warmup, self.end_on_life_loss = frame_skip, warmup, end_on_life_loss
        self.env = make_env(name, sticky_actions, minimal_actions)
        self.num_actions = int(self.env.action_space.n)
        self.action_meanings: list[str] = list(self.env.unwrapped.get_action_meanings())

    def __enter__(self) -> "AtariGame":
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    def play(self, policy: Policy, *, seed: int, frames: int) -> Iterator[PlayedFrame]:
        """Play one game: yields at most `frames` frames.

        The first action and reward are 0. The policy is called with each frame but the last and chooses the next
        action.
        """
        played = self.start(seed)
        for remaining in reversed(range(frames)):
            yield played
            if played.over or not remaining:
                return
            played = self.step(policy(played.frame))

    def start(self, seed: int) -> PlayedFrame:
        """Start a game, play its warmup and return the first frame that is shown; its action and reward are 0."""
        frame, _ = self.env.reset(seed=seed)
        self._lives = self._lives_left()
        played = PlayedFrame(frame=frame, action=0, reward=0.0, terminated=False, truncated=False)
        for _ in range(self.warmup):
            if not played.over:
                played = self.step(0)
        return replace(played, reward=0.0)

    def step(self, action: int) -> PlayedFrame:
        """Hold an action for `frame_skip` emulator frames, or until the game is over, and return the frame to show."""
        frames: list[np.ndarray] = []
        total, terminated, truncated = 0.0, False, False
        while len(frames) < self.frame_skip and not (terminated or truncated):
            frame, reward, terminated, truncated, _ = self.env.step(action)
            frames.append(frame)
            total += float(reward)
            lives = self._lives_left()
            terminated = terminated or lives < self._lives
            self._lives = lives
        shown = np.max(frames[-2:], axis=0)  # many games draw their sprites only on every other frame
        return PlayedFrame(frame=shown, action=action, reward=total, terminated=terminated, truncated=truncated)

    def _lives_left(self) -> int:
        return int(self.env.unwrapped.ale.lives()) if self.end_on_life_loss else 0


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
