"""Picks actions by trying several futures from one cached past, and sees in the real game where they lead.

    python examples/plan_with_forks.py [--model runs/demo/world_model/model] [--episodes runs/demo/episodes/test]

The goal is a frame that the recorded player reached a second later. For each latent step of the plan the world model
forks its past into candidate futures, each under actions of its own, which share the past's keys and values; the first
step of the one that comes nearest the goal is taken (random shooting, replanned at every step). Then the recorded game
is played again up to the prompt's end, and on under the plan, and under as many random plans to compare with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.common.commands import add_command, run_command
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.episodes import Episode, find_episodes
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.reading import read_frames
from world_model import GroupedActions, Sampler, StepGenerator, WorldModel, group_actions
from world_model.recording.record import replay
from world_model.rollout.files import load_model
from world_model.rollout.tokens import decode_steps, encode_prompt, video_tokens_of

SCALE = 3  # of the picture


def as_video(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (t, h, w, 3) -> (1, 3, t, h, w) in [-1, 1]."""
    return from_uint8(torch.from_numpy(frames)[None].to(device))


def candidate_actions(candidates: int, steps: int, model: WorldModel, rng: np.random.Generator) -> GroupedActions:
    """Random actions for so many futures, each held for a latent step."""
    held = rng.integers(model.tokens.actions.size, size=(candidates, steps, 1))
    values = torch.from_numpy(held).expand(-1, -1, model.tokens.temporal_factor).to(model.device)
    return GroupedActions(values=values, known=torch.ones_like(values, dtype=torch.bool))


def plan(
    past: StepGenerator, adapter: TokenizerAdapter, goal: Tensor, steps: int, candidates: int, rng: np.random.Generator
) -> tuple[list[int], Tensor]:
    """Actions of so many latent steps that bring the past near the goal's latents (1, c, 1, H, W), as imagined; and the
    steps' tokens."""
    chosen: list[int] = []
    taken = []
    for step in range(steps):
        futures = past.fork(candidates)  # draws the same numbers in each: they differ by their actions alone
        actions = candidate_actions(candidates, steps - step, past.model, rng)
        for ahead in range(steps - step):
            tokens = futures.step(actions[ahead : ahead + 1])
        ends = adapter.latents_of(video_tokens_of(adapter, tokens[:, None], adapter.temporal_factor))
        best = int((ends - goal).square().flatten(1).mean(1).argmin())
        first = GroupedActions(values=actions.values[best : best + 1, :1], known=actions.known[best : best + 1, :1])
        taken.append(past.step(first))
        chosen += first.values.flatten().tolist()
    return chosen, torch.stack(taken, dim=1)


def last_frame(episode: Episode, actions: Sequence[int], device: torch.device) -> Tensor:
    """The last frame (1, 3, 1, h, w) of the recorded game, played under other actions."""
    return as_video(replay(episode.meta, actions)[-1:], device)


def demo(args: argparse.Namespace) -> None:
    device, rng = default_device(), np.random.default_rng(args.seed)
    model, adapter = load_model(args.model, device)
    if model.tokens.actions.kind != "discrete":
        raise ValueError("plan_with_forks: the world model must have learned discrete actions; train it on play.")
    f = model.tokens.temporal_factor
    episodes = find_episodes(args.episodes)
    end, horizon = args.prompt_frames, args.steps * f
    scores, rows = [], []
    for goal_number in range(args.goals):
        episode = episodes[goal_number % len(episodes)]
        if episode.num_frames <= end + horizon:
            raise ValueError(
                f"plan_with_forks: {episode.path} must have more frames than prompt and plan, {end + horizon}, got "
                f"{episode.num_frames}; lower --prompt-frames or --steps."
            )
        start = int(rng.integers(0, episode.num_frames - end - horizon))
        frames = read_frames(episode.path, range(start, start + end + horizon))
        known = episode.actions[start : start + end]
        prompt, goal = as_video(frames[:end], device), as_video(frames[-1:], device)
        # The goal's own step, encoded with what led to it: its last frame alone is not a step of f frames.
        goal_tokens = encode_prompt(model, adapter, as_video(frames, device))[:, -1:]
        goal_latents = adapter.latents_of(video_tokens_of(adapter, goal_tokens, f))
        tokens = encode_prompt(model, adapter, prompt)
        past = StepGenerator(
            model,
            tokens,
            group_actions(torch.from_numpy(known)[None].to(device), f),
            Sampler(temperature=args.temperature, seed=args.seed),
        )
        actions, imagined = plan(past, adapter, goal_latents, args.steps, args.candidates, rng)
        before = episode.actions[: start + end].tolist()
        planned = last_frame(episode, before + actions, device)
        others = [
            last_frame(episode, before + candidate_actions(1, args.steps, model, rng).values.flatten().tolist(), device)
            for _ in range(args.random_plans)
        ]
        believed = decode_steps(adapter, torch.cat([tokens, imagined], dim=1))[:, :, -1:]
        by_chance = torch.stack([frame_psnr(goal, other).mean() for other in others])
        scores.append((float(frame_psnr(goal, planned).mean()), float(by_chance.mean())))
        print(f"goal {goal_number + 1}: {scores[-1][0]:.2f} dB under the plan, {scores[-1][1]:.2f} under random ones")
        rows.append(torch.cat([prompt[:, :, -1:], goal, believed.to(goal), planned, others[0]], dim=4))
    planned_psnr, random_psnr = np.mean(scores, axis=0)
    wins = sum(planned > random for planned, random in scores)
    print(
        f"PSNR of the real game's last frame to the goal: {planned_psnr:.2f} dB under plans, {random_psnr:.2f} under "
        f"random ones; plans were nearer for {wins} of {len(scores)} goals"
    )
    pixels = to_uint8(torch.cat(rows, dim=3)[0])[0]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((pixels.shape[1] * SCALE, pixels.shape[0] * SCALE), Image.Resampling.NEAREST).save(
        args.output
    )
    print(f"{args.output}: prompt's end, goal, imagined end, real end under the plan, and under a random one")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="plan_with_forks.py", description="Plan by forking a cached past.")
    command = add_command(parser.add_subparsers(), "run", demo, "plan actions that reach a goal")
    command.add_argument("--model", type=Path, default=Path("runs/demo/world_model/model"), metavar="FOLDER")
    command.add_argument("--episodes", type=Path, default=Path("runs/demo/episodes/test"), metavar="FOLDER")
    command.add_argument("--output", type=Path, default=Path("runs/plan/plans.png"), metavar="out.png")
    command.add_argument("--goals", type=int, default=8)
    command.add_argument("--candidates", type=int, default=32, help="futures tried at each step")
    command.add_argument("--steps", type=int, default=3, help="latent steps from the prompt's end to the goal")
    command.add_argument("--prompt-frames", type=int, default=13)
    command.add_argument("--random-plans", type=int, default=8, help="to compare with")
    command.add_argument("--temperature", type=float, default=0.7)
    command.add_argument("--seed", type=int, default=0)
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
