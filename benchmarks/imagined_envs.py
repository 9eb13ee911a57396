"""The speed of imagined environments: many in one batch, against as many single ones.

    python benchmarks/imagined_envs.py [--world boxing] [--num-envs 16] [--steps 8] [--cpu-time]

Both step the same world from its own prompts under random actions, in float32 and in bfloat16; the single ones take
turns. Each of these is made by the world's name, so that it has a copy of the weights; `--share` lets them share one.
Frames are those of the video, of which a step imagines several. Resets are left out. `--cpu-time` counts the process's
seconds on a core in place of the clock's, which other processes disturb less.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from harness import in_turns, make_parser, ratio, report

from vidtok_plugin.common.precision import Precision
from world_model import Decoding, ImaginedEnv, ImaginedVectorEnv, load_world
from world_model.rollout.worlds import world_prompts

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ORDERS = {"diagonal": Decoding(order="diagonal"), "raster": Decoding()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--world", default="boxing", help="a name, folder or repository")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps of each environment in a round")
    parser.add_argument("--share", action="store_true", help="the single ones share the weights")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the process on a core, not of the clock")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    world, prompts = load_world(args.world), world_prompts(args.world)
    frames = args.num_envs * args.steps * world[0].tokens.temporal_factor
    rows = []
    for order, decoding in ORDERS.items():
        contenders: dict[str, Callable[[], None]] = {}
        for precision in PRECISIONS:
            settings: dict[str, Any] = {
                "prompts": prompts,
                "horizon": None,
                "decoding": replace(decoding, precision=precision),
            }
            singles = [ImaginedEnv(world if args.share else args.world, **settings) for _ in range(args.num_envs)]
            batch = ImaginedVectorEnv(world, args.num_envs, **settings)
            for i, env in enumerate(singles):
                env.action_space.seed(i)
                env.reset(seed=i)
            batch.reset(seed=0)
            contenders[f"single, {precision}"] = stepping(singles, args.steps)
            contenders[f"batch, {precision}"] = stepping(batch, args.steps)
        clock = time.process_time if args.cpu_time else time.perf_counter
        seconds = in_turns(contenders, rounds=args.rounds, clock=clock)
        for name, taken in seconds.items():
            rows.append(
                {
                    "order": order,
                    "environments": f"{args.num_envs}, {name}",
                    "frames/s": frames / statistics.median(taken),
                    "speedup": ratio(seconds["single, float32"], taken),
                }
            )
    report("imagined_envs", rows, args.output, packages=["gymnasium"], rounds=args.rounds, steps=args.steps)


def stepping(envs: ImaginedVectorEnv | list[ImaginedEnv], steps: int) -> Callable[[], None]:
    """Steps under random actions. Episodes start again where the world ends them."""
    if isinstance(envs, ImaginedVectorEnv):
        envs.action_space.seed(0)

        def together() -> None:
            for _ in range(steps):
                envs.step(envs.action_space.sample())

        return together

    def by_turns() -> None:
        for _ in range(steps):
            for env in envs:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()

    return by_turns


if __name__ == "__main__":
    main()
