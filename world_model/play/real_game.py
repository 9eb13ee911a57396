"""The real game beside the imagined one, under the same actions, where the recorded environment is installed."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidtok_plugin.video.resizing import resize
from world_model.play.scenes import Prompt, Scenes
from world_model.recording.game import EMULATOR_FPS, AtariGame

EARLIER_ACTIONS = "earlier_actions"  # in the JSON of a prompt: the actions of the episode's frames before its first


@dataclass(frozen=True, kw_only=True)
class RealStep:
    """The frames of the real game in one latent step."""

    frames: np.ndarray  # uint8 (f, h, w, 3), of the imagined frames' size
    reward: float  # the sum over the frames
    score: float  # since the game's start
    over: bool
    state: Any  # the emulator's, to go back to; it includes the random numbers


class RealGame:
    """A game of the environment in which a prompt was recorded.

    A prompt whose JSON has its recipe and seed is played again up to its last frame, so that both games start from the
    same picture. One that was cut out of an episode also has the actions before it, `earlier_actions`. Others start
    anew.
    """

    def __init__(self, scenes: Scenes, prompt: Prompt, seed: int) -> None:
        """A ValueError says why there is no real game for this prompt."""
        recipe = prompt.meta.get("recipe")
        self.replayed = isinstance(recipe, Mapping) and type(prompt.meta.get("seed")) is int
        self._size = prompt.frames.shape[1:3]
        self._game = _open(scenes, prompt, recipe if self.replayed and isinstance(recipe, Mapping) else {})
        self._f = scenes.step_frames
        played = self._game.start(int(prompt.meta["seed"]) if self.replayed else seed)
        frames = deque([played.frame], maxlen=self._f)
        if self.replayed and prompt.actions is not None:
            actions = [*_earlier_actions(scenes, prompt), *prompt.actions[0].tolist()]
            frames.extend(self._game.step(action).frame for action in actions[1:])
        frames.extendleft([frames[0]] * (self._f - len(frames)))
        self._last, self._score, self._over = frames[-1], 0.0, False
        self.first = self._as_step(list(frames), 0.0)

    def close(self) -> None:
        self._game.env.close()

    def step(self, actions: list[int]) -> RealStep:
        """Play the f frames of a latent step; after its end, the game's last picture stays."""
        frames, reward = [], 0.0
        for action in actions:
            if not self._over:
                played = self._game.step(action)
                self._last, self._over = played.frame, played.over
                reward += played.reward
            frames.append(self._last)
        self._score += reward
        return self._as_step(frames, reward)

    def go_to(self, step: RealStep) -> None:
        """Go back, or over to another branch: to the moment after `step`."""
        self._game.env.unwrapped.restore_state(step.state)
        self._last, self._score, self._over = step.frames[-1], step.score, step.over

    def _as_step(self, frames: list[np.ndarray], reward: float) -> RealStep:
        state = self._game.env.unwrapped.clone_state(include_rng=True)
        height, width = self._size
        small = [frame if frame.shape[:2] == self._size else resize(frame[None], height, width)[0] for frame in frames]
        return RealStep(frames=np.stack(small), reward=reward, score=self._score, over=self._over, state=state)


def _earlier_actions(scenes: Scenes, prompt: Prompt) -> list[int]:
    actions = prompt.meta.get(EARLIER_ACTIONS, [])
    if not isinstance(actions, list):
        raise ValueError(f"The prompt's {EARLIER_ACTIONS} must be a list of actions, got {str(actions)[:60]!r}.")
    for action in actions:
        scenes.actions.check(action)
    return actions


def _open(scenes: Scenes, prompt: Prompt, recipe: Mapping[str, Any]) -> AtariGame:
    name = prompt.meta.get("environment")
    if not isinstance(name, str):
        raise ValueError("The prompt's JSON names no environment.")
    if not name.startswith("ALE/"):
        raise ValueError(f"{name} is not an Atari game.")
    for minimal in (True, False):
        try:
            game = AtariGame(
                name,
                frame_skip=int(recipe.get("frame_skip", max(1, round(EMULATOR_FPS / prompt.fps)))),
                warmup=int(recipe.get("warmup", 0)),
                sticky_actions=float(recipe.get("sticky_actions", 0.0)),
                minimal_actions=minimal,
            )
        except ValueError as error:
            reason = str(error).removeprefix("record: ")
            raise ValueError(f"{reason[:1].upper()}{reason[1:]}") from None
        if game.action_meanings == list(scenes.actions.meanings):
            return game
        game.env.close()
    raise ValueError(f"{name} has other actions than this world.")
