"""Games that a recording plays frame by frame, and Atari's."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from world_model.recording.policy import Policy

EMULATOR_FPS = 60
ATARI_PACKAGE = "ale_py"


@dataclass(frozen=True, kw_only=True)
class PlayedFrame:
    """A frame of a game, the action that led to it, and what came with it."""

    frame: np.ndarray  # uint8 (h, w, 3), as the game draws it
    action: int | np.ndarray  # as an episode keeps it: a choice, or a vector (a,)
    reward: float  # the sum over the game's steps that it covers
    terminated: bool  # the game is over
    truncated: bool  # the environment stopped it, at a time limit for example
    observation: Any = None  # what the policy sees
    state: np.ndarray | None = None  # float32 (s,), the low-dimensional part of the observation

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Game(ABC):
    """A game that shows one frame for every `frame_skip` steps of its environment.

    env: the gymnasium environment.
    fps: steps per second; None if the environment doesn't say.
    version: of the package that has the environment; None if it is none that was installed.
    """

    env: Any
    frame_skip: int
    fps: float | None
    version: str | None

    def __enter__(self) -> "Game":
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    @abstractmethod
    def renew(self) -> None:
        """Make `env` as if no game had been played in it, if a reset may leave something of the last one."""

    def play(self, policy: Policy, *, seed: int, frames: int) -> Iterator[PlayedFrame]:
        """Play one game: yields at most `frames` frames.

        The first action and reward are 0. The policy is called with each frame's observation but the last, and chooses
        the next action.
        """
        played = self.start(seed)
        for remaining in reversed(range(frames)):
            yield played
            if played.over or not remaining:
                return
            played = self.step(policy(played.observation))

    @abstractmethod
    def start(self, seed: int) -> PlayedFrame:
        """Start a game and return the first frame that is shown; its action and reward are 0."""

    @abstractmethod
    def step(self, action: Any) -> PlayedFrame:
        """Hold an action for `frame_skip` steps, or until the game is over, and return the frame to show."""

    @abstractmethod
    def action(self, row: Any) -> Any:
        """The action that an episode keeps as `row`, a choice or a vector (a,)."""

    @abstractmethod
    def rows(self, rows: list[Any]) -> np.ndarray:
        """Kept actions as an episode's array: int64 (t,) or float32 (t, a)."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What an episode's JSON says of the game: `action_space`, and more."""


class AtariGame(Game):
    """An Atari game that shows one frame for every `frame_skip` frames of the emulator, as the policy sees it.

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
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.frame_skip, self.warmup, self.end_on_life_loss = frame_skip, warmup, end_on_life_loss
        self.env = make_env(name, sticky_actions, minimal_actions, **(env_kwargs or {}))
        self.fps, self.version = EMULATOR_FPS, version("ale-py")
        self.num_actions = int(self.env.action_space.n)
        self.action_meanings: list[str] = list(self.env.unwrapped.get_action_meanings())

    def __enter__(self) -> "AtariGame":
        return self

    def start(self, seed: int) -> PlayedFrame:
        """Start a game, play its warmup and return the first frame that is shown; its action and reward are 0."""
        frame, _ = self.env.reset(seed=seed)
        self._lives = self._lives_left()
        played = PlayedFrame(frame=frame, action=0, reward=0.0, terminated=False, truncated=False, observation=frame)
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
        return PlayedFrame(
            frame=shown,
            action=action,
            reward=total,
            terminated=terminated,
            truncated=truncated,
            observation=shown,
        )

    def renew(self) -> None:
        """Nothing, since a reset loads the game anew."""

    def action(self, row: Any) -> int:
        return int(row)

    def rows(self, rows: list[Any]) -> np.ndarray:
        return np.array(rows, np.int64)

    def facts(self) -> dict[str, Any]:
        return {"action_space": {"kind": "discrete", "size": self.num_actions, "meanings": self.action_meanings}}

    def _lives_left(self) -> int:
        return int(self.env.unwrapped.ale.lives()) if self.end_on_life_loss else 0


def is_atari(name: str) -> bool:
    """Whether an environment is one of ale-py's games; those of its namespace are, installed or not."""
    name = name.rpartition(":")[2]
    if name.startswith("ALE/"):
        return True
    try:
        import ale_py
        import gymnasium
        from gymnasium.envs.registration import parse_env_id
    except ImportError:
        return False
    gymnasium.register_envs(ale_py)
    try:
        place = parse_env_id(name)[:2]
    except gymnasium.error.Error:  # it is no name of an environment
        return False
    found = (spec for spec in gymnasium.registry.values() if (spec.namespace, spec.name) == place)
    return any(str(spec.entry_point).startswith(ATARI_PACKAGE) for spec in found)


def make_env(name: str, sticky_actions: float, minimal_actions: bool, **env_kwargs: Any) -> Any:
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
            **env_kwargs,
        )
        if not hasattr(env.unwrapped, "get_action_meanings") or not hasattr(env.action_space, "n"):
            env.close()
            raise TypeError("it is a game of another kind")
    except (gymnasium.error.Error, TypeError, ImportError) as error:  # other games do not accept these arguments
        raise ValueError(
            f"RecordConfig: env must be one of gymnasium's Atari games, such as ALE/Boxing-v5, got {name!r} ({error})."
        ) from None
    return env
