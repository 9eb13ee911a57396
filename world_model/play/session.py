"""A player's game: the imagination, the real game beside it, the moments behind them, and the settings of both.

Shapes: f frames per latent step, a components of a continuous action.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch

from vidtok_plugin.video.pixels import to_uint8
from world_model.heads.sampler import Sampler
from world_model.play.real_game import RealGame
from world_model.play.scenes import Scenes
from world_model.play.timeline import Moment, Timeline
from world_model.rollout.imagination import Imagination

Action = int | tuple[float, ...] | None
MOMENTS, MOMENT_BYTES = 64, 400_000_000  # that can be gone back to: at most this many, in at most these bytes
HISTORY_BYTES = 48_000_000  # of a branch's frames, which can be saved
BRANCHES = 6


@dataclass(frozen=True)
class Input:
    """The action that the player holds from now on."""

    action: Action
    id: int  # given back with the first frames under it, so that the player can measure the delay


class PlaySession:
    """One game, advanced by one latent step at a time. Not for several threads at once, except `hold`.

    `real`: whether to play the real game beside it.
    """

    def __init__(self, scenes: Scenes, *, seed: int = 0, real: bool = True) -> None:
        self.scenes = scenes
        self.measures_entropy = False
        self.sampler = Sampler(seed=seed)
        self.wants_real = real
        self.real: RealGame | None = None
        self.held = Input(scenes.actions.rest, 0)
        self._inputs: deque[Input] = deque(maxlen=64)
        self._next_moment = 0
        self.prompt = 0
        self.reset(0)

    def close(self) -> None:
        """Free everything."""
        if self.real is not None:
            self.real.close()
            self.real = None

    # The player's actions

    def hold(self, given: Input) -> None:
        """The player holds another action from now on; may be called from any thread."""
        self._inputs.append(given)

    def advance(self) -> Moment:
        """Imagine the next latent step under the held action, and play it in the real game; -> the new moment.

        An action that was held only between two steps, too briefly for either, gets the first half of the frames.
        A ValueError if the game is over.
        """
        before = self.timeline.cursor
        if before.terminated:
            raise ValueError("play: the game is over; reset it, or go back and on differently.")
        actions = self._next_actions()
        step = self.live.step(actions, entropy=self.measures_entropy)
        reward = None if step.rewards is None else float(step.rewards.sum())
        taken = None if actions is None else actions[0].numpy()
        moment = Moment(
            id=self._next_moment,
            frames=to_uint8(step.frames[0]),
            actions=taken,
            reward=reward,
            score=None if reward is None else (before.score or 0.0) + reward,
            terminated=step.terminated is not None and bool(step.terminated[0]),
            entropy=None if step.entropy is None else step.entropy[0].cpu().numpy(),
            real=None if self.real is None or taken is None else self.real.step([int(action) for action in taken]),
            resume=self.live.fork(),
        )
        self._next_moment += 1
        self.branched = self.timeline.append(moment)
        return moment

    def _next_actions(self) -> torch.Tensor | None:
        """The f actions of the next step (1, f[, a])."""
        rest = self.scenes.actions.rest
        tapped: Action = None
        while self._inputs:
            given = self._inputs.popleft()
            if given.action != rest:
                tapped = given.action
            self.held = given
        if rest is None:
            return None
        f = self.scenes.step_frames
        actions = [self.held.action] * f
        if tapped is not None and tapped != self.held.action and self.held.action == rest:
            actions[: (f + 1) // 2] = [tapped] * ((f + 1) // 2)
        return torch.tensor([actions], dtype=torch.int64 if isinstance(rest, int) else torch.float32)

    def prepare(self) -> None:
        """Do what the next step needs and can be done while its actions are waited for."""
        self.live.prepare()

    # Going elsewhere

    def reset(self, prompt: int | None = None) -> None:
        """Start anew, from the same prompt or another, with other random numbers than before. The held action stays."""
        if prompt is not None:
            if not 0 <= prompt < len(self.scenes.prompts):
                raise ValueError(f"play: prompt must be in 0..{len(self.scenes.prompts) - 1}, got {prompt}.")
            self.prompt = prompt
        if self._next_moment:
            self.sampler = replace(self.sampler, seed=self.sampler.seed + 1)
        self.live = self.scenes.begin(self.prompt, self.sampler)
        self._start_real()
        first = Moment(
            id=self._next_moment,
            frames=to_uint8(self.live.frames[0]),
            actions=None,
            reward=None,
            score=None,
            terminated=False,
            entropy=None,
            real=None if self.real is None else self.real.first,
            resume=self.live.fork(),
        )
        self._next_moment += 1
        while self._inputs:  # the newest stays: the player may have given it after the reset that is done only now
            self.held = self._inputs.popleft()
        moments = max(2 * BRANCHES, min(MOMENTS, MOMENT_BYTES // self.live.state_bytes))
        history = max(MOMENTS, HISTORY_BYTES // first.frames.nbytes)
        self.timeline = Timeline(first, max_moments=moments, max_branches=BRANCHES, max_history=history)
        self.branched = False

    def rewind(self, moment: int) -> Moment:
        """Go back to a moment of the live branch; the next step begins another branch there."""
        self.timeline.go_to(moment)
        return self._resume()

    def switch(self, branch: int) -> Moment:
        """Go on where a branch ended."""
        self.timeline.go_to_branch(branch)
        return self._resume()

    def set_sampler(self, *, temperature: float, guidance: float) -> None:
        """Draw with another temperature or guidance from now on; a ValueError if the world can't be guided."""
        if guidance != 1 and not self.scenes.guidable:
            raise ValueError(f"play: guidance must be 1, since this world knows no unknown actions, got {guidance}.")
        sampler = replace(self.sampler, temperature=temperature, guidance=guidance)
        if sampler != self.sampler:
            self.live = self.live.with_sampler(sampler)
            self.sampler = sampler

    def _resume(self) -> Moment:
        moment = self.timeline.cursor
        assert moment.resume is not None
        self.live = self._with_own_sampler(moment.resume)
        if self.real is not None and moment.real is not None:
            self.real.go_to(moment.real)
        return moment

    def _with_own_sampler(self, past: Imagination) -> Imagination:
        """A fork under the settings of now."""
        now = replace(self.sampler, seed=past.sampler.seed)
        return past.fork() if now == past.sampler else past.with_sampler(now)

    def _start_real(self) -> None:
        """Start the real game, or say in `no_real` why there is none."""
        self.close()
        self.no_real: str | None = "It was switched off."
        if not self.wants_real:
            return
        try:
            self.real = RealGame(self.scenes, self.scenes.prompts[self.prompt], self.sampler.seed)
            self.no_real = None
        except ValueError as error:
            self.no_real = str(error)
