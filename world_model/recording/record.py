"""Recording real Atari play as episodes: videos with an action for every frame."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.video.episode_meta import read_meta
from vidtok_plugin.video.episodes import actions_path, load_episode, meta_path, rewards_path, save_episode_files
from vidtok_plugin.video.reading import probe
from vidtok_plugin.video.resizing import resize
from vidtok_plugin.video.writing import VideoWriter
from world_model.recording.game import EMULATOR_FPS, AtariGame
from world_model.recording.policy import CoveringPolicy, MakePolicy

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
VIDEO_DIGEST, ACTIONS_DIGEST, REWARDS_DIGEST = "video_sha256", "actions_sha256", "rewards_sha256"  # in a JSON
CHUNK_FRAMES = 64  # resized and written together
MAX_ATTEMPTS = 100  # games in a row that may end before min_frames


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The settings of a recording.

    Each split gets at least `*_episodes * frames_per_episode` frames. A file is one uninterrupted game of at most
    `frames_per_episode` frames, so games that end early give more files. Games shorter than `min_frames` are dropped.
    All lengths count recorded frames. One recorded frame covers `frame_skip` emulator frames under the same action and
    shows the pixelwise maximum of the last two.
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
    hold: tuple[int, int] = (2, 12)  # smallest and largest number of frames for which the policy holds an action
    warmup: int = 0  # frames at the start of a game, played without action and not recorded
    sticky_actions: float = 0.0  # probability that the emulator repeats the previous action instead
    end_on_life_loss: bool = False  # an episode ends, terminated, where a life is lost
    minimal_actions: bool = True  # only the actions that have an effect in this game, not all 18
    seed: int = 0
    fps: float | None = None  # of the video files; None for the emulator's 60 / frame_skip
    crf: int = 10  # H.264 quality: 0 is lossless, larger values give smaller files

    def __post_init__(self) -> None:
        check_fields(self)
        minima = {
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
        for field, minimum in minima.items():
            if getattr(self, field) < minimum:
                raise ValueError(f"RecordConfig: {field} must be at least {minimum}, got {getattr(self, field)}.")
        if self.min_frames > self.frames_per_episode:
            raise ValueError(
                f"RecordConfig: min_frames must be at most frames_per_episode ({self.frames_per_episode}),"
                f" got {self.min_frames}."
            )
        if len(self.hold) != 2 or not 1 <= self.hold[0] <= self.hold[1]:
            raise ValueError(
                f"RecordConfig: hold must be the smallest and the largest number of frames, from 1, got {self.hold}."
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
        """Every setting that determines what the n-th episode shows; not the number of episodes or the folder."""
        recipe = asdict(self)
        for field in ("output", "train_episodes", "validation_episodes", "test_episodes"):
            del recipe[field]
        return recipe | {"hold": list(self.hold), "fps": self.file_fps}

    def num_frames(self, split: str) -> int:
        return getattr(self, f"{split}_episodes") * self.frames_per_episode


def record(cfg: RecordConfig, *, policy: MakePolicy = CoveringPolicy, show_progress: bool = True) -> None:
    """Record `OUTPUT/{train,validation,test}/episode_00000.mp4` ... with their actions, rewards and JSON.

    The JSON says whether a game was over at the episode's end (`terminated`), or went on or was stopped (`truncated`).

    `policy` is called once per game and makes the policy that plays it; its name is in the JSON unless it is the
    default. Complete episodes with the same settings and policy are kept: an interrupted recording continues where it
    stopped, and asking for more episodes extends a recording. Episodes whose video or actions are missing or damaged
    are recorded again. What an episode shows depends only on the settings, the policy, its split and its number.

    Raises:
        ValueError: the game is unknown, or the folder has episodes recorded with other settings or another policy, or
            more episodes than asked for, or another process is recording into it.

    Example:
        >>> record(RecordConfig(env="ALE/Boxing-v5", output="data/boxing"))   # doctest: +SKIP
    """
    splits = [split for split in SPLITS if cfg.num_frames(split) > 0]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        _open_game(cfg) as game,
        FolderLock(cfg.output),
        Progress(*columns, disable=not show_progress) as progress,
    ):
        done = {split: _existing_episodes(cfg, policy, split) for split in splits}
        for split in splits:
            for number, (_, problem) in enumerate(done[split]):
                if problem is not None:
                    logger.warning("%s; recording it again", problem)
                    _record_episode(cfg, policy, game, split, number)
            total, frames = cfg.num_frames(split), sum(length for length, _ in done[split])
            task = progress.add_task(f"{cfg.env} {split}", total=total, completed=min(frames, total))
            number = len(done[split])
            while frames < total:
                frames += _record_episode(cfg, policy, game, split, number)
                number += 1
                progress.update(task, completed=min(frames, total))
            logger.info("%s: %d episodes, %d frames of %s", split, number, frames, cfg.env)


def replay(meta: Mapping[str, Any], actions: Sequence[int]) -> np.ndarray:
    """Play a recorded game again under the given actions; -> its frames, uint8 (t, size, size, 3).

    `meta` is the JSON of the game's episode. `actions[0]` is ignored. The episode's own actions give its frames as they
    were before compression.

    Raises:
        ValueError: the recording used sticky actions, or the game ends before the actions do.
    """
    recipe = {**meta["recipe"], "hold": tuple(meta["recipe"]["hold"])}
    cfg = RecordConfig(**recipe, output="")
    if cfg.sticky_actions:
        raise ValueError(
            f"replay: sticky_actions must be 0, got {cfg.sticky_actions}; such a game can't be played again."
        )
    remaining = iter(actions[1:])
    with _open_game(cfg) as game:
        played = game.play(lambda _: next(remaining), seed=meta["seed"], frames=len(actions))
        frames = [shown.frame for shown in played]
    if len(frames) < len(actions):
        raise ValueError(f"replay: the game ended after {len(frames)} of {len(actions)} frames.")
    return resize(np.stack(frames), cfg.size, cfg.size)


def _open_game(cfg: RecordConfig) -> AtariGame:
    return AtariGame(
        cfg.env,
        frame_skip=cfg.frame_skip,
        warmup=cfg.warmup,
        sticky_actions=cfg.sticky_actions,
        minimal_actions=cfg.minimal_actions,
        end_on_life_loss=cfg.end_on_life_loss,
    )


def _episode_path(cfg: RecordConfig, split: str, number: int) -> Path:
    return Path(cfg.output) / split / f"episode_{number:05d}.mp4"


def _policy_name(policy: MakePolicy) -> str:
    return getattr(policy, "__name__", repr(policy))


def _existing_episodes(cfg: RecordConfig, policy: MakePolicy, split: str) -> list[tuple[int, str | None]]:
    """The frame count of each of the split's episodes, and what is wrong with its files, None if nothing is.

    Each is checked against the settings and the policy.
    """
    recipe = cfg.recipe | {"policy": _policy_name(policy)}
    found: list[tuple[int, str | None]] = []
    while meta_path(path := _episode_path(cfg, split, len(found))).exists():
        meta = read_meta(path)
        recorded = meta.get("recipe")
        if not isinstance(recorded, dict) or type(meta.get("num_frames")) is not int:
            raise ValueError(
                f"record: {meta_path(path)} must have the recipe and num_frames of a recording, got {sorted(meta)}; "
                "restore it, or remove it to record the episode again."
            )
        recorded = {"end_on_life_loss": False} | recorded  # earlier recordings could not
        recorded |= {"policy": meta.get("policy", CoveringPolicy.__name__)}
        changed = [field for field, value in recipe.items() if recorded.get(field) != value]
        if changed:
            raise ValueError(
                f"record: {path} was recorded with {changed[0]}={recorded.get(changed[0])!r}, not"
                f" {recipe[changed[0]]!r}; choose another output, or remove {path.parent.parent}."
            )
        if sum(length for length, _ in found) >= cfg.num_frames(split):
            raise ValueError(
                f"record: {path.parent} has more episodes than the {getattr(cfg, f'{split}_episodes')} asked"
                f" for; choose another output, ask for more, or remove {path.name} and those after it."
            )
        found.append((meta["num_frames"], _damage(path)))
    return found


def _damage(video: Path) -> str | None:
    """What is wrong with a recorded episode's files; None if they are as they were written."""
    if not video.is_file():
        return f"{video} is missing"
    if not actions_path(video).is_file():
        return f"{actions_path(video)} is missing"
    try:
        episode = load_episode(video)
        if REWARDS_DIGEST in episode.meta and episode.rewards is None:
            return f"{rewards_path(video)} is missing"
        arrays: tuple[tuple[str, Path, np.ndarray | None], ...] = (
            (ACTIONS_DIGEST, actions_path(video), episode.actions),
            (REWARDS_DIGEST, rewards_path(video), episode.rewards),
        )
        for key, path, array in arrays:
            if key in episode.meta and array is not None and episode.meta[key] != sha256(array.tobytes()).hexdigest():
                return f"{path} differs from its {key}"
        if (expected := episode.meta.get(VIDEO_DIGEST)) is not None:
            problem = None if expected == hash_files(video) else f"differs from its {VIDEO_DIGEST}"
        else:  # recorded before there were digests
            frames = probe(video).num_frames
            problem = None if frames == episode.num_frames else f"has {frames} frames, not {episode.num_frames}"
    except (ValueError, OSError) as error:
        return str(error).rstrip(".")
    return None if problem is None else f"{video} {problem}"


def _record_episode(cfg: RecordConfig, make_policy: MakePolicy, game: AtariGame, split: str, number: int) -> int:
    """Record one episode; -> its number of frames."""
    path = _episode_path(cfg, split, number)
    for attempt in range(MAX_ATTEMPTS):
        seeds = np.random.SeedSequence([cfg.seed, SPLITS.index(split), number, attempt])
        game_seed = int(seeds.generate_state(1)[0] >> 1)
        policy = make_policy(game.num_actions, cfg.hold, np.random.default_rng(seeds))
        actions: list[int] = []
        rewards: list[float] = []
        terminated = False
        writer = VideoWriter(path, fps=cfg.file_fps, crf=cfg.crf)
        try:
            frames: list[np.ndarray] = []
            for shown in game.play(policy, seed=game_seed, frames=cfg.frames_per_episode):
                actions.append(shown.action)
                rewards.append(shown.reward)
                terminated = shown.terminated
                frames.append(shown.frame)
                if len(frames) == CHUNK_FRAMES:
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
            "seed": game_seed,
            "frame_skip": cfg.frame_skip,
            "sticky_actions": cfg.sticky_actions,
            "fps": cfg.file_fps,
            "size": cfg.size,
            "num_frames": len(actions),
            "terminated": terminated,
            "truncated": not terminated,
            "action_space": {"kind": "discrete", "size": game.num_actions, "meanings": game.action_meanings},
            "split": split,
            "recipe": cfg.recipe,
        }
        if make_policy is not CoveringPolicy:
            meta["policy"] = _policy_name(make_policy)
        taken, earned = np.array(actions, np.int64), np.array(rewards, np.float32)
        meta |= {
            VIDEO_DIGEST: hash_files(path),
            ACTIONS_DIGEST: sha256(taken.tobytes()).hexdigest(),
            REWARDS_DIGEST: sha256(earned.tobytes()).hexdigest(),
        }
        save_episode_files(path, taken, json.loads(json.dumps(meta)), earned)
        return len(actions)
    raise ValueError(
        f"record: {MAX_ATTEMPTS} games of {cfg.env} in a row ended before {cfg.min_frames} frames; lower min_frames or"
        " warmup."
    )
