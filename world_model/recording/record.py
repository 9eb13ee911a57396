"""Recording real play as episodes: videos with an action for every frame."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.video.resizing import resize
from world_model.recording.config import SPLITS, RecordConfig
from world_model.recording.episode import existing_episodes, record_episode
from world_model.recording.game import Game
from world_model.recording.parallel import SplitTotals, record_in_processes
from world_model.recording.policies import NamedPolicy
from world_model.recording.policy import MakePolicy

__all__ = ["SPLITS", "RecordConfig", "record", "replay"]

logger = logging.getLogger(__name__)


def record(cfg: RecordConfig, *, policy: MakePolicy | None = None, show_progress: bool = True) -> None:
    """Record `OUTPUT/{train,validation,test}/episode_00000.mp4` ... with their actions, rewards, state and JSON.

    The JSON says whether a game was over at the episode's end (`terminated`), or went on or was stopped (`truncated`).

    `policy`, by default what `cfg.policy` names, is called once per game and makes the policy that plays it; its name
    is in the JSON unless it is covering. Complete episodes with the same settings and policy are kept: an interrupted
    recording continues where it stopped, and asking for more episodes extends a recording. Episodes with files that are
    missing or damaged are recorded again. What an episode shows depends only on the settings, the policy, its split and
    its number.

    Raises:
        ValueError: the game or the policy is unknown or does not work, or the folder has episodes recorded with other
            settings or another policy, or more episodes than asked for, or another process is recording into it.
        ChildProcessError: one of several processes failed.

    Example:
        >>> record(RecordConfig(env="ALE/Boxing-v5", output="data/boxing"))   # doctest: +SKIP
    """
    chosen = NamedPolicy.of(cfg.policy if policy is None else policy)
    with cfg.open_game() as game:
        chosen.check(game, cfg.hold)
        with FolderLock(cfg.output), progress_bar(show_progress) as progress:
            splits = [_missing(cfg, game, chosen, split, progress) for split in SPLITS if cfg.num_frames(split) > 0]
            if cfg.processes > 1:
                record_in_processes(cfg, policy, splits)
            else:
                for totals in splits:
                    while (number := totals.next()) is not None:
                        totals.add(number, record_episode(cfg, chosen, game, totals.split, number))
            for totals in splits:
                logger.info(
                    "%s: %d episodes, %d frames of %s", totals.split, len(totals.lengths), totals.frames, cfg.env
                )


def _missing(cfg: RecordConfig, game: Game, policy: NamedPolicy, split: str, progress: Progress) -> SplitTotals:
    """What a split lacks."""
    found = existing_episodes(cfg, game, policy, split)
    for _, problem in found:
        if problem is not None:
            logger.warning("%s; recording it again", problem)
    total = cfg.num_frames(split)
    task = progress.add_task(f"{cfg.env} {split}", total=total)
    existing = [(frames, problem is not None) for frames, problem in found]
    return SplitTotals(split, total, existing, show=lambda frames: progress.update(task, completed=min(frames, total)))


def replay(meta: Mapping[str, Any], actions: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Play a recorded game again under the given actions; -> its frames, uint8 (t, h, w, 3).

    `meta` is the JSON of the game's episode, and actions are as it keeps them; `actions[0]` is ignored. The episode's
    own actions give its frames as they were before compression.

    Raises:
        ValueError: the recording used sticky actions, or the game ends before the actions do.
    """
    cfg = RecordConfig.from_recipe(meta["recipe"])
    if cfg.sticky_actions:
        raise ValueError(
            f"replay: sticky_actions must be 0, got {cfg.sticky_actions}; such a game can't be played again."
        )
    remaining = iter(actions[1:])
    with cfg.open_game() as game:
        game.renew()
        played = game.play(lambda _: game.action(next(remaining)), seed=meta["seed"], frames=len(actions))
        frames = [shown.frame for shown in played]
    if len(frames) < len(actions):
        raise ValueError(f"replay: the game ended after {len(frames)} of {len(actions)} frames.")
    return resize(np.stack(frames), *cfg.frame_size)
