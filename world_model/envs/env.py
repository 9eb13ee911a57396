"""ImaginedEnv: a gymnasium environment whose steps a world model imagines."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

from world_model.decoding import Decoding
from world_model.envs.episodes import ImaginedEpisodes, World
from world_model.envs.spaces import ImaginedSpaces
from world_model.envs.starts import Prompts, Start
from world_model.heads.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class EnvState:
    """Everything that decides how an environment goes on: its episodes, and what starts the next ones."""

    episodes: ImaginedEpisodes
    generators: tuple[np.random.Generator, ...]
    restarts: np.ndarray  # (b,) bool: which environments of a vector start again in the next step

    def copy(self) -> "EnvState":
        """One that goes on independently."""
        return EnvState(
            episodes=self.episodes.fork(), generators=deepcopy(self.generators), restarts=self.restarts.copy()
        )


class ImaginedEnv(gymnasium.Env[np.ndarray, Any]):
    """A game that a world model imagines, from recorded prompts on.

    A step imagines the f video frames of a latent step. Its action is held for `action_repeat` of them, by default for
    all; with fewer, an action of the environment is the f / action_repeat that follow each other. Observations are the
    newest frame, uint8 (h, w, 3). A reward is the sum of those that the world predicts for the step's frames; a world
    that predicts none gives 0, and says so in the log. An episode is terminated where the world predicts its end, and
    truncated after `horizon` frames. `info` has all `frames` of the step, uint8 (f, h, w, 3), and their `rewards`, and
    after a reset the `prompt`, which is the episode that it comes from, and its `first_frame` there.

    `reset` draws a prompt of `prompt_frames` frames from the episodes `prompts`, a source for `open_episodes` or a list
    of sources or opened episodes, by default those that the world brings along. Equal seeds give equal episodes under
    equal actions, alone or in an `ImaginedVectorEnv`.

    world: a source for `load_world`, or a model with its adapter, which needs `prompts`.
    prompt_frames: 1 + k f; by default those of 4 latent steps.
    horizon: in frames, a multiple of f; None never truncates.
    action_range: bounds of each component of continuous actions. None: those of the action space that the world
        was trained on, or else three deviations around the mean of its actions.
    sampler, decoding: how tokens are drawn, as in `rollout`.
    device: of the world; by default the GPU if there is one.

    Raises:
        FileNotFoundError: the world or a prompt is missing.
        ValueError: a setting doesn't fit the world.

    Example:
        env = gymnasium.make("vidtok/Imagined-v0", world="boxing")
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self,
        world: World,
        *,
        prompts: Prompts | None = None,
        prompt_frames: int | None = None,
        horizon: int | None = 256,
        action_repeat: int | None = None,
        action_range: tuple[float, float] | None = None,
        sampler: Sampler | None = None,
        decoding: Decoding | None = None,
        device: torch.device | str | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._episodes = ImaginedEpisodes(
            world,
            1,
            prompts=prompts,
            prompt_frames=prompt_frames,
            horizon=horizon,
            sampler=sampler,
            decoding=decoding,
            device=device,
            who="ImaginedEnv",
        )
        model, adapter = self._episodes.model, self._episodes.adapter
        self._spaces = ImaginedSpaces.of(model, adapter, action_repeat, action_range, "ImaginedEnv")
        self.observation_space, self.action_space = self._spaces.observation, self._spaces.action
        self.render_mode = checked_render_mode(render_mode, "ImaginedEnv")
        self.metadata = {**self.metadata, "render_fps": self._episodes.starts.fps / self._spaces.frames}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start another episode; -> its first frame, uint8 (h, w, 3), and the info.

        Raises:
            ValueError: there are options, or a prompt doesn't fit the world.
        """
        super().reset(seed=seed)
        check_no_options(options, "ImaginedEnv")
        (start,) = self._episodes.start([0], [self.np_random])
        frames = self._episodes.newest[0]
        return frames[-1].copy(), start_info(frames, start)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine the next latent step.

        Raises:
            gymnasium.error.ResetNeeded: the episode has ended, or none was started.
            ValueError: the action is outside the action space.
        """
        if self._episodes.ended[0]:
            raise gymnasium.error.ResetNeeded(
                "ImaginedEnv: reset() must be called first, and again after each episode's end."
            )
        actions = self._spaces.world_actions([action], 1, "ImaginedEnv")
        step = self._episodes.step(actions)
        rewards = None if step.rewards is None else step.rewards[0]
        state = None if step.state is None else step.state[0]
        return (
            step.frames[0, -1].copy(),
            0.0 if rewards is None else float(rewards.sum()),
            bool(step.terminated[0]),
            bool(step.truncated[0]),
            step_info(step.frames[0], rewards, state),
        )

    def render(self) -> np.ndarray | None:
        """The newest frame, uint8 (h, w, 3); None without a render mode."""
        if self.render_mode is None or self._episodes.imagination is None:
            return None
        return self._episodes.newest[0, -1]

    def clone_state(self) -> EnvState:
        """The environment as it is now, for `restore_state`. It shares the past without a copy.

        Example:
            state = env.unwrapped.clone_state()
            env.step(left)
            env.unwrapped.restore_state(state)  # as often as needed
        """
        return EnvState(episodes=self._episodes, generators=(self.np_random,), restarts=np.zeros(1, dtype=bool)).copy()

    def restore_state(self, state: EnvState) -> None:
        """Go on from a state of this environment, or of another one of the same world: equal actions give equal steps.

        Raises:
            ValueError: the state is of another number of environments.
        """
        state = checked_state(state, 1, "ImaginedEnv").copy()
        self._episodes, (self._np_random,) = state.episodes, state.generators


def start_info(frames: np.ndarray, start: Start) -> dict[str, Any]:
    """The info of a reset, with the newest frames (f, h, w, 3)."""
    return {"frames": frames, "prompt": str(start.episode), "first_frame": start.first_frame}


def step_info(frames: np.ndarray, rewards: np.ndarray | None, state: np.ndarray | None) -> dict[str, Any]:
    """The info of a step with its frames (f, h, w, 3), their rewards (f,) and their states (f, s)."""
    found = {"frames": frames, "rewards": rewards, "state": state}
    return {name: values for name, values in found.items() if values is not None}


def checked_render_mode(mode: str | None, who: str) -> str | None:
    if mode not in (None, "rgb_array"):
        raise ValueError(f"{who}: render_mode must be rgb_array or None, got {mode!r}.")
    return mode


def check_no_options(options: dict[str, Any] | None, who: str) -> None:
    """A ValueError for options of a reset, of which there are none."""
    if options:
        raise ValueError(f"{who}: reset has no such options, got {sorted(options)}; leave them out.")


def checked_state(state: EnvState, count: int, who: str) -> EnvState:
    """A ValueError unless the state is of as many environments."""
    if state.episodes.count != count:
        raise ValueError(
            f"{who}: the state must be of {count} environments like this one, got one of {state.episodes.count}."
        )
    return state
