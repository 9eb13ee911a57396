"""ImaginedVectorEnv: many imagined environments, whose steps a world model imagines in one batch.

Shapes: b environments, h w pixels, f frames per latent step.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from world_model.decoding import Decoding
from world_model.envs.env import (
    EnvState,
    ImaginedEnv,
    check_no_options,
    checked_render_mode,
    checked_state,
    start_info,
    step_info,
)
from world_model.envs.episodes import EpisodesStep, ImaginedEpisodes, World
from world_model.envs.spaces import ImaginedSpaces
from world_model.envs.starts import Prompts
from world_model.heads.sampler import Sampler

Infos = dict[str, Any]
Seeds = int | Sequence[int | None] | None


class ImaginedVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """`num_envs` environments like `ImaginedEnv`, in one batch. Each gives what it would give alone with its seed.

    With a seed s, environment i gets the seed s + i, as in gymnasium's own vector environments, or the i-th of a list.
    Environments whose episode has ended start again one by one while the others go on, as `autoreset_mode` says: in the
    next step, whose action they ignore and whose reward is 0 (NEXT_STEP); in the same step, whose last observation and
    info are then `final_obs` and `final_info` in the infos (SAME_STEP); or only when `reset` is called with
    `options={"reset_mask": mask}`, a bool array (b,) of those to reset (DISABLED).

    The other arguments, rewards and infos are those of `ImaginedEnv`, stacked.

    Example:
        envs = ImaginedVectorEnv("boxing", num_envs=16)
        observations, infos = envs.reset(seed=0)  # uint8 (16, 64, 64, 3)
        observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
    """

    metadata: dict[str, Any] = {**ImaginedEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        world: World,
        num_envs: int = 1,
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
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self._episodes = ImaginedEpisodes(
            world,
            num_envs,
            prompts=prompts,
            prompt_frames=prompt_frames,
            horizon=horizon,
            sampler=sampler,
            decoding=decoding,
            device=device,
            who="ImaginedVectorEnv",
        )
        model, adapter = self._episodes.model, self._episodes.adapter
        self._spaces = ImaginedSpaces.of(model, adapter, action_repeat, action_range, "ImaginedVectorEnv")
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self._spaces.observation, self._spaces.action
        self.observation_space = batch_space(self._spaces.observation, num_envs)
        self.action_space = batch_space(self._spaces.action, num_envs)
        self.render_mode = checked_render_mode(render_mode, "ImaginedVectorEnv")
        self._mode = AutoresetMode(autoreset_mode)
        fps = self._episodes.starts.fps / self._spaces.frames
        self.metadata = {**self.metadata, "render_fps": fps, "autoreset_mode": self._mode}
        self._rngs: list[np.random.Generator] = []
        self._restarts = np.zeros(num_envs, dtype=bool)  # in the next step

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Infos]:
        """Start all environments, or those of `options["reset_mask"]` (b,) bool.

        Raises:
            ValueError: seeds or mask are not one for each environment, or there are other options.
        """
        options = dict(options or {})
        rows = self._masked_rows(options.pop("reset_mask", None))
        check_no_options(options, "ImaginedVectorEnv")
        self._seed(rows, seed)
        self._restarts[rows] = False
        infos = self._start(rows, {})
        return self._episodes.newest[:, -1].copy(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Imagine the next latent step of all environments.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was not called, or not for an environment whose episode has ended.
            ValueError: the actions are outside the action space.
        """
        each = self._spaces.separate(actions, self.num_envs, "ImaginedVectorEnv")
        world_actions = self._spaces.world_actions(each, self.num_envs, "ImaginedVectorEnv")
        restarts = self._restarts
        if not self._rngs or (self._episodes.ended & ~restarts).any():
            raise gymnasium.error.ResetNeeded(
                "ImaginedVectorEnv: reset() must be called first, and with autoreset disabled again for environments "
                "whose episode has ended."
            )
        step = self._episodes.step(world_actions)  # also of those that start again: one call is faster than two
        goes_on = ~restarts
        rewards = np.zeros(self.num_envs)
        if step.rewards is not None:
            rewards = np.where(goes_on, step.rewards.sum(1, dtype=np.float64), 0.0)
        terminated, truncated = step.terminated & goes_on, step.truncated & goes_on
        infos: Infos = {}
        starting: list[int] = restarts.nonzero()[0].tolist()
        if self._mode == AutoresetMode.SAME_STEP:
            starting = (terminated | truncated).nonzero()[0].tolist()
            for row in starting:
                final = {"final_obs": step.frames[row, -1].copy(), "final_info": self._info_of(step, row)}
                infos = self._add_info(infos, final, row)
        for row in range(self.num_envs):
            if row not in starting:
                infos = self._add_info(infos, self._info_of(step, row), row)
        frames = step.frames
        if starting:
            infos = self._start(starting, infos)
            frames = self._episodes.newest
        self._restarts = terminated | truncated if self._mode == AutoresetMode.NEXT_STEP else np.zeros_like(restarts)
        return frames[:, -1].copy(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The newest frame of each environment, uint8 (h, w, 3); None without a render mode."""
        if self.render_mode is None or self._episodes.imagination is None:
            return None
        return tuple(self._episodes.newest[:, -1])

    def clone_state(self) -> EnvState:
        """All environments as they are now; see `ImaginedEnv.clone_state`."""
        return EnvState(episodes=self._episodes, generators=tuple(self._rngs), restarts=self._restarts).copy()

    def restore_state(self, state: EnvState) -> None:
        """Go on from a state of as many environments of the same world; see `ImaginedEnv.restore_state`."""
        state = checked_state(state, self.num_envs, "ImaginedVectorEnv").copy()
        self._episodes, self._rngs, self._restarts = state.episodes, list(state.generators), state.restarts

    def _masked_rows(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"ImaginedVectorEnv: reset_mask must be a bool for each of the {self.num_envs} environments, one of "
                f"them True, got {mask.dtype} of {mask.shape}."
            )
        if not self._rngs and not mask.all():
            raise gymnasium.error.ResetNeeded("ImaginedVectorEnv: the first reset must be one of all environments.")
        rows: list[int] = mask.nonzero()[0].tolist()
        return rows

    def _seed(self, rows: list[int], seed: Seeds) -> None:
        """New generators for the rows that have a seed, and for all rows at first."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is None:
            seeds = [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"ImaginedVectorEnv: seed must be a number, or one for each of the {self.num_envs} environments, got "
                f"{len(seeds)}."
            )
        if not self._rngs:
            self._rngs = [np_random(None)[0] for _ in range(self.num_envs)]
        for row in rows:
            if seeds[row] is not None:
                self._rngs[row] = np_random(seeds[row])[0]

    def _start(self, rows: list[int], infos: Infos) -> Infos:
        starts = self._episodes.start(rows, [self._rngs[row] for row in rows])
        newest = self._episodes.newest
        for row, start in zip(rows, starts, strict=True):
            infos = self._add_info(infos, start_info(newest[row], start), row)
        return infos

    def _info_of(self, step: EpisodesStep, row: int) -> Infos:
        rewards, state = (None if x is None else x[row] for x in (step.rewards, step.state))
        return step_info(step.frames[row], rewards, state)
