"""Recording real Atari play, by a random policy that covers all actions, as episodes of video with
actions."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidtok_plugin.video.episodes import load_episode, meta_path, save_episode_files
from vidtok_plugin.video.resizing import resize
from vidtok_plugin.video.writing import VideoWriter

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
EMULATOR_FPS = 60
CHUNK = 64  # frames that are resized and written at once
MAX_ATTEMPTS = 100  # games in a row that may end before min_frames


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What `record` records.

    A split gets `*_episodes * frames_per_episode` frames or a little more. A file is one unbroken game of at
    most `frames_per_episode` frames, so that games that end early make more files; those under `min_frames`
    are dropped. Times are in recorded frames, of which each is `frame_skip` frames of the emulator under one
    action, shown as the pixelwise maximum of the last two (many games draw their sprites on every other
    frame).
    """

    env: str
    output: str
    train_episodes: int = 8
    validation_episodes: int = 2
    test_episodes: int = 2
    frames_per_episode: int = 1000
    min_frames: int = 64
    size: int = 64  # height and width in pixels
    frame_skip: int = 2
    hold: tuple[int, int] = (2, 12)  # the policy holds each action for this many frames at least and at most
    warmup: int = 0  # frames without action at a game's start that are not recorded
    sticky_actions: float = 0.0  # probability with which the emulator repeats the last action instead
    minimal_actions: bool = True  # only the actions that do something in this game, not all 18
    seed: int = 0
    fps: float | None = None  # of the files; the emulator's 60 / frame_skip by default
    crf: int = 10  # of H.264: 0 is lossless, larger is smaller

    def __post_init__(self) -> None:
        at_least = {
            "train_episodes": 0,
            "validation_episodes": 0,
            "test_episodes": 0,
            "frames_per_episode": 2,
            "min_frames": 2,
            "size": 8,
            "frame_skip": 1,
            "warmup": 0,
            "seed": 0,
        }
        for field, least in at_least.items():
            if getattr(self, field) < least:
                raise ValueError(f"RecordConfig: {field} must be at least {least}, got {getattr(self, field)}.")
        if self.min_frames > self.frames_per_episode:
            raise ValueError(
                f"RecordConfig: min_frames must be at most frames_per_episode ({self.frames_per_episode}),"
                f" got {self.min_frames}."
            )
        if len(self.hold) != 2 or not 1 <= self.hold[0] <= self.hold[1]:
            raise ValueError(
                f"RecordConfig: hold must be a least and a largest number of frames, from 1, got {self.hold}."
            )
        if not 0 <= self.sticky_actions < 1:
            raise ValueError(f"RecordConfig: sticky_actions must be in [0, 1), got {self.sticky_actions}.")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"RecordConfig: fps must be above 0, got {self.fps}.")

    @property
    def file_fps(self) -> float:
        return EMULATOR_FPS / self.frame_skip if self.fps is None else self.fps

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides what an episode of a given number shows; without how many there are, and where."""
        recipe = asdict(self)
        for field in ("output", "train_episodes", "validation_episodes", "test_episodes"):
            del recipe[field]
        return recipe | {"hold": list(self.hold), "fps": self.file_fps}

    def num_frames(self, split: str) -> int:
        return getattr(self, f"{split}_episodes") * self.frames_per_episode


class CoveringPolicy:
    """Takes all actions equally often, in random order, each held for a random number of frames."""

    def __init__(self, num_actions: int, hold: tuple[int, int], rng: np.random.Generator) -> None:
        self.num_actions, self.hold, self.rng = num_actions, hold, rng
        self._bag: list[int] = []
        self._action, self._left = 0, 0

    def __call__(self) -> int:
        if self._left == 0:
            if not self._bag:
                self._bag = self.rng.permutation(self.num_actions).tolist()
            self._action = self._bag.pop()
            self._left = int(self.rng.integers(self.hold[0], self.hold[1], endpoint=True))
        self._left -= 1
        return self._action


def record(cfg: RecordConfig, *, show_progress: bool = True) -> None:
    """Records `OUTPUT/{train,validation,test}/episode_00000.mp4` ... with their actions and JSON.

    Complete episodes of the same recipe are kept, so that an interrupted recording goes on where it stopped,
    and one with more episodes extends one with fewer. What an episode shows depends on the recipe, split and
    number alone.

    Raises:
        ValueError: an unknown game, or a folder with episodes of another recipe or more than were asked for.

    Example:
        >>> record(RecordConfig(env="ALE/Boxing-v5", output="data/boxing"))   # doctest: +SKIP
    """
    splits = [split for split in SPLITS if cfg.num_frames(split) > 0]
    done = {split: _complete_episodes(cfg, split) for split in splits}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    env = _make_env(cfg)
    try:
        with Progress(*columns, disable=not show_progress) as progress:
            for split in splits:
                total, frames = cfg.num_frames(split), sum(done[split])
                task = progress.add_task(f"{cfg.env} {split}", total=total, completed=min(frames, total))
                number = len(done[split])
                while frames < total:
                    frames += _record_episode(cfg, env, split, number)
                    number += 1
                    progress.update(task, completed=min(frames, total))
                logger.info("%s: %d episodes, %d frames of %s", split, number, frames, cfg.env)
    finally:
        env.close()


def replay(meta: Mapping[str, Any], actions: Sequence[int]) -> np.ndarray:
    """The frames (t, size, size, 3) uint8 of a recorded game, whose episode has the JSON `meta`, under these actions.

    Under the episode's own they are its frames before compression; `actions[0]` is ignored. A ValueError if the
    recording had sticky actions, or the game ends earlier.
    """
    recipe = {**meta["recipe"], "hold": tuple(meta["recipe"]["hold"])}
    cfg = RecordConfig(**recipe, output="")
    if cfg.sticky_actions:
        raise ValueError(f"replay: sticky actions ({cfg.sticky_actions}) make a game that can't be played again.")
    cfg = replace(cfg, frames_per_episode=max(len(actions), cfg.min_frames))
    coming = iter(actions[1:])
    env = _make_env(cfg)
    frames = []
    try:
        for _, frame in islice(_play(cfg, env, meta["seed"], lambda: next(coming)), len(actions)):
            frames.append(frame)
    finally:
        env.close()
    if len(frames) < len(actions):
        raise ValueError(f"replay: the game ended after {len(frames)} of {len(actions)} frames.")
    return resize(np.stack(frames), cfg.size, cfg.size)


def _make_env(cfg: RecordConfig) -> Any:
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise ValueError(
            f"record: {error.name} is missing, which plays Atari; install it with: pip install 'vidtok-plugin[demo]'."
        ) from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    try:
        return gymnasium.make(
            cfg.env,
            obs_type="rgb",
            frameskip=1,
            repeat_action_probability=cfg.sticky_actions,
            full_action_space=not cfg.minimal_actions,
            disable_env_checker=True,
        )
    except gymnasium.error.Error as error:
        raise ValueError(
            f"RecordConfig: env must be one of gymnasium's Atari games such as ALE/Boxing-v5, got"
            f" {cfg.env!r} ({error})."
        ) from None


def _episode_path(cfg: RecordConfig, split: str, number: int) -> Path:
    return Path(cfg.output) / split / f"episode_{number:05d}.mp4"


def _complete_episodes(cfg: RecordConfig, split: str) -> list[int]:
    """The numbers of frames of the split's episodes that are there already, checked against the recipe."""
    frames: list[int] = []
    while meta_path(_episode_path(cfg, split, len(frames))).exists():
        episode = load_episode(_episode_path(cfg, split, len(frames)))
        theirs = episode.meta.get("recipe", {})
        other = [field for field, value in cfg.recipe.items() if theirs.get(field) != value]
        if other:
            raise ValueError(
                f"record: {episode.path} was recorded with {other[0]}={theirs.get(other[0])!r}, not"
                f" {cfg.recipe[other[0]]!r}; name another output, or remove the folder"
                f" {episode.path.parent.parent}."
            )
        if sum(frames) >= cfg.num_frames(split):
            raise ValueError(
                f"record: {episode.path.parent} has more episodes than the"
                f" {getattr(cfg, f'{split}_episodes')} asked"
                f" for; name another output, ask for more, or remove {episode.path.name} and those after it."
            )
        frames.append(episode.num_frames)
    return frames


def _record_episode(cfg: RecordConfig, env: Any, split: str, number: int) -> int:
    path = _episode_path(cfg, split, number)
    for attempt in range(MAX_ATTEMPTS):
        seeds = np.random.SeedSequence([cfg.seed, SPLITS.index(split), number, attempt])
        env_seed = int(seeds.generate_state(1)[0] >> 1)
        policy = CoveringPolicy(int(env.action_space.n), cfg.hold, np.random.default_rng(seeds))
        actions: list[int] = []
        writer = VideoWriter(path, fps=cfg.file_fps, crf=cfg.crf)
        try:
            frames: list[np.ndarray] = []
            for action, frame in _play(cfg, env, env_seed, policy):
                actions.append(action)
                frames.append(frame)
                if len(frames) == CHUNK:
                    writer.write(resize(np.stack(frames), cfg.size, cfg.size))
                    frames = []
            if frames:
                writer.write(resize(np.stack(frames), cfg.size, cfg.size))
        except BaseException:
            writer.discard()
            raise
        if len(actions) < cfg.min_frames:
            writer.discard()
            continue
        writer.close()
        meta = {
            "environment": cfg.env,
            "version": version("ale-py"),
            "seed": env_seed,
            "frame_skip": cfg.frame_skip,
            "sticky_actions": cfg.sticky_actions,
            "fps": cfg.file_fps,
            "size": cfg.size,
            "num_frames": len(actions),
            "action_space": {
                "kind": "discrete",
                "size": int(env.action_space.n),
                "meanings": list(env.unwrapped.get_action_meanings()),
            },
            "split": split,
            "recipe": cfg.recipe,
        }
        save_episode_files(path, np.asarray(actions, np.int64), json.loads(json.dumps(meta)))
        return len(actions)
    raise ValueError(
        f"record: {MAX_ATTEMPTS} games of {cfg.env} in a row ended within {cfg.min_frames} frames;"
        " lower min_frames or warmup."
    )


def _play(cfg: RecordConfig, env: Any, seed: int, policy: Callable[[], int]) -> Iterator[tuple[int, np.ndarray]]:
    """One game: each frame with the action that led to it, until it ends or has frames_per_episode frames."""
    observation, _ = env.reset(seed=seed)
    over = False
    for _ in range(cfg.warmup):
        observation, over = _step(cfg, env, 0)
        if over:
            return
    yield 0, observation
    for _ in range(cfg.frames_per_episode - 1):
        action = policy()
        observation, over = _step(cfg, env, action)
        yield action, observation
        if over:
            return


def _step(cfg: RecordConfig, env: Any, action: int) -> tuple[np.ndarray, bool]:
    frames: list[np.ndarray] = []
    over = False
    while len(frames) < cfg.frame_skip and not over:
        frame, _, terminated, truncated, _ = env.step(action)
        frames.append(frame)
        over = terminated or truncated
    return np.max(frames[-2:], axis=0), over
