"""Plans actions by trying many futures from one cached past, and checks the plan in the real game.

    python examples/plan_with_forks.py [--model runs/demo/world_model/model] [--episodes runs/demo/episodes/test]

The goal is a frame that the recorded player reached a moment later. For each latent step of the plan, the world model
forks its past into candidate futures under random actions. All of them share the past's keys and values. The plan takes
the first step of the candidate that ends nearest the goal, and plans again from there (random shooting). Finally the
recorded game is replayed up to the end of the prompt and continued under the plan, and under random plans to compare.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shared import run_example
from torch import Tensor

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.episodes import Episode, find_episodes
from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.reading import read_frames
from world_model import GroupedActions, Sampler, StepGenerator, WorldModel, group_actions, load_world
from world_model.recording.record import replay
from world_model.rollout.files import as_video
from world_model.rollout.tokens import decode_steps, encode_prompt, video_tokens_of

SCALE = 3  # enlargement of the picture


def candidate_actions(candidates: int, steps: int, model: WorldModel, rng: np.random.Generator) -> GroupedActions:
    """Random actions for a number of futures, each action held for one latent step."""
    held = rng.integers(model.tokens.actions.size, size=(candidates, steps, 1))
    values = torch.from_numpy(held).expand(-1, -1, model.tokens.temporal_factor).to(model.device)
    return GroupedActions(values=values, known=torch.ones_like(values, dtype=torch.bool))


def plan(
    past: StepGenerator, adapter: TokenizerAdapter, goal: Tensor, steps: int, candidates: int, rng: np.random.Generator
) -> tuple[list[int], Tensor]:
    """Plan `steps` latent steps towards the goal's latents (1, c, 1, H, W); -> the actions and the imagined tokens."""
    chosen: list[int] = []
    taken = []
    for step in range(steps):
        futures = past.fork(candidates)  # all draw the same random numbers: they differ only by their actions
        actions = candidate_actions(candidates, steps - step, past.model, rng)
        for ahead in range(steps - step):
            tokens = futures.step(actions[ahead : ahead + 1])
        ends = adapter.latents_of(video_tokens_of(tokens[:, None], adapter.temporal_factor))
        best = int((ends - goal).square().flatten(1).mean(1).argmin())
        first = GroupedActions(values=actions.values[best : best + 1, :1], known=actions.known[best : best + 1, :1])
        taken.append(past.step(first))
        chosen += first.values.flatten().tolist()
    return chosen, torch.stack(taken, dim=1)


def last_frame(episode: Episode, actions: Sequence[int], device: torch.device) -> Tensor:
    """The last frame (1, 3, 1, h, w) of the recorded game, replayed under the given actions."""
    return as_video(replay(episode.meta, actions)[-1:], device)


def plan_all(args: argparse.Namespace) -> None:
    """Plan for every goal, compare with random plans, and draw where each of them ends."""
    rng = np.random.default_rng(args.seed)
    model, adapter = load_world(args.model)
    device = model.device
    if model.tokens.actions.kind != "discrete":
        raise ValueError("plan_with_forks: the world model must be trained with discrete actions; train it on play.")
    f, prompt_frames = model.tokens.temporal_factor, args.prompt_frames
    episodes = find_episodes(args.episodes)
    length = prompt_frames + args.steps * f
    scores, rows = [], []
    for number in range(args.goals):
        episode = episodes[number % len(episodes)]
        if episode.num_frames <= length:
            raise ValueError(
                f"plan_with_forks: {episode.path} must have more frames than prompt and plan, {length}, got "
                f"{episode.num_frames}; lower --prompt-frames or --steps."
            )
        start = int(rng.integers(0, episode.num_frames - length))
        video = as_video(read_frames(episode.path, range(start, start + length)), device)
        prompt, goal = video[:, :, :prompt_frames], video[:, :, -1:]
        # The goal's step is encoded after the frames that led to it: a step is f frames, not one.
        goal_tokens = encode_prompt(model, adapter, video)[:, -1:]
        goal_latents = adapter.latents_of(video_tokens_of(goal_tokens, f))

        tokens = encode_prompt(model, adapter, prompt)
        known = torch.from_numpy(episode.actions[start : start + prompt_frames])[None].to(device)
        sampler = Sampler(temperature=args.temperature, seed=args.seed)
        past = StepGenerator(model, tokens, group_actions(known, f), sampler)
        actions, imagined = plan(past, adapter, goal_latents, args.steps, args.candidates, rng)
        imagined_end = decode_steps(adapter, torch.cat([tokens, imagined], dim=1))[:, :, -1:]

        before = episode.actions[: start + prompt_frames].tolist()
        planned_end = last_frame(episode, before + actions, device)
        random_ends = [
            last_frame(episode, before + candidate_actions(1, args.steps, model, rng).values.flatten().tolist(), device)
            for _ in range(args.random_plans)
        ]
        planned_psnr = float(frame_psnr(goal, planned_end).mean())
        random_psnr = float(torch.stack([frame_psnr(goal, end).mean() for end in random_ends]).mean())
        print(f"goal {number + 1}: {planned_psnr:.2f} dB under the plan, {random_psnr:.2f} under random ones")
        scores.append((planned_psnr, random_psnr))
        rows.append(torch.cat([prompt[:, :, -1:], goal, imagined_end.to(goal), planned_end, random_ends[0]], dim=4))

    planned_mean, random_mean = np.mean(scores, axis=0)
    wins = sum(planned > random for planned, random in scores)
    print(
        f"PSNR of the real game's last frame to the goal: {planned_mean:.2f} dB under plans, {random_mean:.2f} under "
        f"random ones; plans were nearer for {wins} of {len(scores)} goals"
    )
    pixels = to_uint8(torch.cat(rows, dim=3)[0])[0]
    size = (pixels.shape[1] * SCALE, pixels.shape[0] * SCALE)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(args.output)
    print(
        f"{args.output}: end of the prompt, goal, imagined end, real end under the plan, real end under a random plan"
    )


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", type=Path, default=Path("runs/demo/world_model/model"), metavar="FOLDER")
    command.add_argument("--episodes", type=Path, default=Path("runs/demo/episodes/test"), metavar="FOLDER")
    command.add_argument("--output", type=Path, default=Path("runs/plan/plans.png"), metavar="out.png")
    command.add_argument("--goals", type=int, default=8)
    command.add_argument("--candidates", type=int, default=32, help="futures to try at each step")
    command.add_argument("--steps", type=int, default=3, help="latent steps from the end of the prompt to the goal")
    command.add_argument("--prompt-frames", type=int, default=13)
    command.add_argument("--random-plans", type=int, default=8, help="random plans to compare with")
    command.add_argument("--temperature", type=float, default=0.7)
    command.add_argument("--seed", type=int, default=0)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(plan_all, argv, description="Plan by forking a cached past.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
