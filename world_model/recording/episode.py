"""A recorded episode: played and written, or found and checked."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.video.episode_meta import read_meta
from vidtok_plugin.video.episodes import (
    actions_path,
    load_episode,
    meta_path,
    rewards_path,
    save_episode_files,
    state_path,
)
from vidtok_plugin.video.reading import probe
from vidtok_plugin.video.resizing import resize
from vidtok_plugin.video.writing import VideoWriter
from world_model.recording.config import SPLITS, RecordConfig
from world_model.recording.game import AtariGame, Game, PlayedFrame
from world_model.recording.policies import NamedPolicy

DEFAULT_POLICY = "covering"  # of an episode whose JSON names none
VIDEO_DIGEST, ACTIONS_DIGEST = "video_sha256", "actions_sha256"  # in a JSON
REWARDS_DIGEST, STATE_DIGEST = "rewards_sha256", "state_sha256"
CHUNK_FRAMES = 64  # resized and written together
MAX_ATTEMPTS = 100  # games in a row that may end before min_frames
EMPTY = np.zeros((0, 0, 3), np.uint8)


def episode_path(folder: Path, split: str, number: int) -> Path:
    """The video of a split's n-th episode."""
    return folder / split / f"episode_{number:05d}.mp4"


def episode_files(video: Path) -> list[Path]:
    """All files that an episode may have, in the order in which they get their names."""
    return [video, actions_path(video), rewards_path(video), state_path(video), meta_path(video)]


def existing_episodes(cfg: RecordConfig, game: Game, policy: NamedPolicy, split: str) -> list[tuple[int, str | None]]:
    """The frame count of each of the split's episodes, and what is wrong with its files, None if nothing is.

    Each is checked against the settings and the policy.

    Raises:
        ValueError: there are episodes with other settings or another policy, or more than asked for.
    """
    recipe = cfg.recipe(game) | {"policy": policy.name}
    found: list[tuple[int, str | None]] = []
    while meta_path(path := episode_path(as_path(cfg.output), split, len(found))).exists():
        meta = read_meta(path)
        recorded = meta.get("recipe")
        if not isinstance(recorded, dict) or type(meta.get("num_frames")) is not int:
            raise ValueError(
                f"record: {meta_path(path)} must have the recipe and num_frames of a recording, got {sorted(meta)}; "
                "restore it, or remove it to record the episode again."
            )
        if "end_on_life_loss" in recipe:
            recorded = {"end_on_life_loss": False} | recorded  # earlier recordings could not
        recorded |= {"policy": meta.get("policy", DEFAULT_POLICY)}
        changed = [field for field in recipe | recorded if recorded.get(field) != recipe.get(field)]
        if changed:
            raise ValueError(
                f"record: {path} was recorded with {changed[0]}={recorded.get(changed[0])!r}, not"
                f" {recipe.get(changed[0])!r}; choose another output, or remove {path.parent.parent}."
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
        arrays: tuple[tuple[str, Path, np.ndarray | None], ...] = (
            (ACTIONS_DIGEST, actions_path(video), episode.actions),
            (REWARDS_DIGEST, rewards_path(video), episode.rewards),
            (STATE_DIGEST, state_path(video), episode.state),
        )
        for key, path, array in arrays:
            if key in episode.meta and array is None:
                return f"{path} is missing"
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


def record_episode(
    cfg: RecordConfig, policy: NamedPolicy, game: Game, split: str, number: int, folder: Path | None = None
) -> int:
    """Record one episode into `folder`, by default the output; returns its number of frames.

    Raises:
        ValueError: the policy returned no action of the game's, or too many games in a row were too short.
    """
    path = episode_path(folder or as_path(cfg.output), split, number)
    try:
        for attempt in range(MAX_ATTEMPTS):
            frames = _record_game(path, cfg, policy, game, split, [cfg.seed, SPLITS.index(split), number, attempt])
            if frames >= cfg.min_frames:
                return frames
    except BaseException:
        _remove_empty(path.parent)
        raise
    _remove_empty(path.parent)
    raise ValueError(
        f"record: {MAX_ATTEMPTS} games of {cfg.env} in a row ended before {cfg.min_frames} frames; lower min_frames"
        f"{' or warmup' if isinstance(game, AtariGame) else ''}."
    )


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it has earlier episodes, or is gone
        folder.rmdir()


def _record_game(
    path: Path, cfg: RecordConfig, policy: NamedPolicy, game: Game, split: str, seed: Sequence[int]
) -> int:
    """Record one game, unless it has fewer frames than `min_frames`; returns how many it had."""
    seeds = np.random.SeedSequence(seed)
    game_seed = int(seeds.generate_state(1)[0] >> 1)
    game.renew()
    player = policy.make(game.env, cfg.hold, np.random.default_rng(seeds))
    played: list[PlayedFrame] = []  # without their pictures
    writer = VideoWriter(path, fps=cfg.file_fps(game), crf=cfg.crf, reproducible=not isinstance(game, AtariGame))
    try:
        frames: list[np.ndarray] = []
        for shown in game.play(player, seed=game_seed, frames=cfg.frames_per_episode):
            frames.append(shown.frame)
            played.append(replace(shown, frame=EMPTY, observation=None))
            if len(frames) == CHUNK_FRAMES:
                writer.write(resize(np.stack(frames), *cfg.frame_size))
                frames = []
        if frames:
            writer.write(resize(np.stack(frames), *cfg.frame_size))
    except BaseException:
        writer.discard()
        raise
    if len(played) < cfg.min_frames:
        writer.discard()
    else:
        writer.close()
        _save_beside(path, cfg, policy, game, split, game_seed, played)
    return len(played)


def _save_beside(
    path: Path,
    cfg: RecordConfig,
    policy: NamedPolicy,
    game: Game,
    split: str,
    seed: int,
    played: list[PlayedFrame],
) -> None:
    """Write what came with a video's frames, and how it was made."""
    actions = game.rows([shown.action for shown in played])
    rewards = np.array([shown.reward for shown in played], np.float32)
    states = [shown.state for shown in played if shown.state is not None]
    state = np.stack(states) if states else None
    meta = {
        "environment": cfg.env,
        "version": game.version,
        "seed": seed,
        "frame_skip": game.frame_skip,
        **({"sticky_actions": cfg.sticky_actions} if isinstance(game, AtariGame) else {}),
        "fps": cfg.file_fps(game),
        "size": cfg.size,
        "num_frames": len(played),
        "terminated": played[-1].terminated,
        "truncated": not played[-1].terminated,
        **game.facts(),
        "split": split,
        "recipe": cfg.recipe(game),
        **({} if policy.name == DEFAULT_POLICY else {"policy": policy.name}),
        VIDEO_DIGEST: hash_files(path),
        ACTIONS_DIGEST: sha256(actions.tobytes()).hexdigest(),
        REWARDS_DIGEST: sha256(rewards.tobytes()).hexdigest(),
        **({} if state is None else {STATE_DIGEST: sha256(state.tobytes()).hexdigest()}),
    }
    save_episode_files(path, actions, json.loads(json.dumps(meta)), rewards, state)
