"""Plans in the real game by imagining futures, and compares with random play: for score, and towards a picture.

    python examples/plan_with_forks.py [--model boxing] [--episodes runs/demo/episodes/test]

Each trial replays a recorded, held-out game up to a moment, and goes on from there in the real game:

- for score: the planner sees the newest frames, imagines candidate futures that share one cached past, takes the first
  actions of the plan with the most predicted reward, sees what really happened, and plans again. Its score is the
  game's own: the player's hits less the opponent's. Random play goes on from the same moments.
- towards a picture: the goal is the frame that the recorded player reached a moment later. A plan's end in the real
  game is compared with the goal, and so are the ends of random plans.

On two CPU cores it takes about 20 minutes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shared import run_example
from torch import Tensor

from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.episodes import RecordedEpisode, find_episodes
from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.resizing import resize
from world_model import Planner, load_world
from world_model.measures import bootstrap_interval
from world_model.recording.game import AtariGame
from world_model.recording.policy import CoveringPolicy
from world_model.rollout.files import as_video

SCALE = 3  # enlargement of the picture
PAST_FRAMES = 29  # that a planner may see
LARGEST_PSNR = 40.0  # dB, of a picture that is as good as the goal


class RealGame:
    """A recorded game, replayed up to a frame and open to other actions from there."""

    def __init__(self, episode: RecordedEpisode, frames: int) -> None:
        recipe = episode.meta["recipe"]
        names = ("frame_skip", "warmup", "sticky_actions", "minimal_actions")
        self.game = AtariGame(recipe["env"], **{name: recipe[name] for name in names})
        self.size, self.hold = recipe["size"], tuple(recipe["hold"])
        first = self.game.start(episode.meta["seed"])
        self.frames, self.actions, self.over = [self._shown(first.frame)], [0], False
        self.score = 0.0
        self.act(episode.actions[1:frames].tolist())
        self.score = 0.0  # from here on

    def act(self, actions: Sequence[int]) -> None:
        """Take actions, one for each frame, until the game is over."""
        for action in actions:
            if self.over:
                return
            played = self.game.step(action)
            self.frames = [*self.frames[1 - PAST_FRAMES :], self._shown(played.frame)]
            self.actions = [*self.actions[1 - PAST_FRAMES :], action]
            self.score += played.reward
            self.over = played.over

    def close(self) -> None:
        self.game.env.close()

    def _shown(self, frame: np.ndarray) -> np.ndarray:
        return resize(frame[None], self.size, self.size)[0]


def starts(episodes: Sequence[RecordedEpisode], count: int, after: int) -> list[tuple[RecordedEpisode, int]]:
    """Moments, as numbers of frames already played, evenly spaced over the episodes, with `after` frames to follow."""
    total = sum(max(0, episode.num_frames - PAST_FRAMES - after) for episode in episodes)
    if total < count:
        raise ValueError(
            f"plan_with_forks: the episodes must be longer than {PAST_FRAMES + after} frames, to have {count} starts; "
            "lower --frames or record longer ones."
        )
    found = []
    for number in range(count):
        place = int((number + 0.5) * total / count)
        for episode in episodes:
            room = max(0, episode.num_frames - PAST_FRAMES - after)
            if place < room:
                found.append((episode, PAST_FRAMES + place))
                break
            place -= room
    return found


def planned(planner: Planner, games: Sequence[RealGame], goals: Tensor | None = None) -> list[list[int]]:
    """The actions of a plan for each of the games; `goals` (b, 3, h, w)."""
    device = planner.model.device
    past = torch.cat([as_video(np.stack(game.frames), device) for game in games])
    actions = torch.tensor([game.actions for game in games], device=device)
    plans: list[list[int]] = planner.plan(past, actions, goals).tolist()
    return plans


def score_under_plans(
    planner: Planner, found: Sequence[tuple[RecordedEpisode, int]], frames: int, every: int
) -> list[float]:
    """The real score of each start over `frames` frames, planned again every `every` frames."""
    games = [RealGame(episode, start) for episode, start in found]
    for played in range(0, frames, every):
        for game, actions in zip(games, planned(planner, games), strict=True):
            game.act(actions[: min(every, frames - played)])
        print(f"  frame {played + every} of {frames}: mean score {np.mean([game.score for game in games]):.2f}")
    for game in games:
        game.close()
    return [game.score for game in games]


def score_at_random(found: Sequence[tuple[RecordedEpisode, int]], frames: int, runs: int) -> np.ndarray:
    """The real scores (starts, runs) of random play."""
    scores = np.zeros((len(found), runs))
    for row, (episode, start) in enumerate(found):
        for run in range(runs):
            game = RealGame(episode, start)
            policy = CoveringPolicy(game.game.num_actions, game.hold, np.random.default_rng([row, run]))
            game.act([policy() for _ in range(frames)])
            game.close()
            scores[row, run] = game.score
    return scores


def reach_goals(
    planner: Planner, found: Sequence[tuple[RecordedEpisode, int]], runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PSNR to the goal of each start's end in the real game: planned (n,), at random (n, runs); and a picture."""
    device, horizon = planner.model.device, planner.cfg.horizon
    actions = planner.model.tokens.actions.size

    def end(episode: RecordedEpisode, start: int, plan: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The frames (1, 3, 1, h, w) before and after the plan."""
        game = RealGame(episode, start)
        before = as_video(game.frames[-1][None], device)
        game.act(plan)
        game.close()
        return before, as_video(game.frames[-1][None], device)

    psnr_planned, psnr_random, rows = [], [], []
    for episode, start in found:
        before, goal = end(episode, start, episode.actions[start : start + horizon].tolist())
        game = RealGame(episode, start)
        plan = planned(planner, [game], goal[:, :, 0])[0]
        game.close()
        reached = end(episode, start, plan)[1]
        random_plans = rng.integers(actions, size=(runs, horizon // planner.held)).repeat(planner.held, axis=1)
        others = [end(episode, start, other.tolist())[1] for other in random_plans]
        psnr_planned.append(_nearness(goal, reached))
        psnr_random.append([_nearness(goal, other) for other in others])
        rows.append(torch.cat([before, goal, reached, others[0]], dim=4))
    picture = to_uint8(torch.cat(rows[:8], dim=3)[0])[0]
    return np.array(psnr_planned), np.array(psnr_random), picture


def _nearness(goal: Tensor, reached: Tensor) -> float:
    """PSNR to the goal in dB, at most `LARGEST_PSNR`: the same picture would have an infinite one."""
    return min(float(frame_psnr(goal, reached).mean()), LARGEST_PSNR)


def plan_all(args: argparse.Namespace) -> None:
    model, adapter = load_world(args.model)
    if model.tokens.actions.kind != "discrete":
        raise ValueError("plan_with_forks: the world model must be trained with discrete actions; train it on play.")
    episodes = find_episodes(args.episodes)
    f = model.tokens.temporal_factor
    settings = {"method": args.method, "candidates": args.candidates, "iterations": args.iterations}
    settings |= {"horizon": args.horizon, "seed": args.seed, "elites": max(1, args.candidates // 8)}
    planner = Planner(model, adapter, **settings)
    summary: dict[str, Any] = {"settings": settings | {"frames": args.frames}}
    if model.config.outcomes is not None and model.config.outcomes.rewards:
        found = starts(episodes, args.starts, args.frames)
        print(f"For score, {len(found)} starts of {args.frames} frames:")
        scores = np.array(score_under_plans(planner, found, args.frames, every=f))
        random_scores = score_at_random(found, args.frames, args.random_plans)
        low, high = bootstrap_interval(scores - random_scores.mean(1))
        summary["score"] = {
            "planned": scores.tolist(),
            "random": random_scores.tolist(),
            "planned_mean": scores.mean(),
            "random_mean": random_scores.mean(),
            "difference_interval": [low, high],
        }
        print(
            f"real score: {scores.mean():.2f} under plans, {random_scores.mean():.2f} at random; difference "
            f"{(scores - random_scores.mean(1)).mean():.2f}, 95% interval {low:.2f} to {high:.2f}"
        )
    found = starts(episodes, args.goals, args.horizon)
    reached, others, picture = reach_goals(planner, found, args.random_plans, np.random.default_rng(args.seed))
    low, high = bootstrap_interval(reached - others.mean(1))
    summary["goals"] = {
        "planned": reached.tolist(),
        "random_mean": others.mean(1).tolist(),
        "difference_interval": [low, high],
    }
    print(
        f"PSNR of the real game's end to the goal picture: {reached.mean():.2f} dB under plans, {others.mean():.2f} "
        f"under random ones; difference {(reached - others.mean(1)).mean():.2f} dB, 95% interval {low:.2f} to "
        f"{high:.2f}; nearer than the mean random plan for {int((reached > others.mean(1)).sum())} of {len(found)} "
        "goals"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    size = (picture.shape[1] * SCALE, picture.shape[0] * SCALE)
    Image.fromarray(picture).resize(size, Image.Resampling.NEAREST).save(args.output)
    args.output.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{args.output}: each row shows the start, the goal, the real end under the plan, and under a random plan")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="boxing", metavar="WORLD")
    command.add_argument("--episodes", type=Path, default=Path("runs/demo/episodes/test"), metavar="FOLDER")
    command.add_argument("--output", type=Path, default=Path("runs/plan/plans.png"), metavar="out.png")
    command.add_argument("--method", choices=("shooting", "cem", "mppi"), default="shooting")
    command.add_argument("--horizon", type=int, default=16, help="frames that a plan covers")
    command.add_argument("--candidates", type=int, default=36, help="futures to imagine in each iteration")
    command.add_argument("--iterations", type=int, default=2, help="of cem and mppi")
    command.add_argument("--starts", type=int, default=20, help="moments from which to play for score")
    command.add_argument("--frames", type=int, default=288, help="frames to play from each of them")
    command.add_argument("--goals", type=int, default=20, help="moments from which to reach a picture")
    command.add_argument("--random-plans", type=int, default=8, help="to compare with, for each moment")
    command.add_argument("--seed", type=int, default=0)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(plan_all, argv, description="Plan in the real game.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
