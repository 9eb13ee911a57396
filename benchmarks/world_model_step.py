"""The world model's training step against a Llama of the same shape: forward, backward and optimizer.

    python benchmarks/world_model_step.py
    python benchmarks/world_model_step.py --precision bf16 --batches 64    # on a GPU, with autocast

Both have the same layers, width, heads, hidden width and vocabulary, read the same windows of 8 latent steps of 64
tokens, and learn by cross entropy the tokens after a window's first step, which is context only. Ours also reads the
actions and the tokens around each position. They take turns; times are medians of rounds, and "x Llama" is the median
of the rounds' ratios. Memory is the additional peak of a second step, in its own process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from harness import in_turns, make_parser, peak_bytes, ratio, report, sharp_memory
from shapes import SIZES, STEP, Shape, random_actions, random_codes
from torch import Tensor, nn

STEPS = 8  # of a window
BATCHES = {"demo": 4, "large": 2}  # configs/world_model/demo_from_scratch.yaml has 4
IGNORED = -100

Row = dict[str, Any]


def make_step(network: str, shape: Shape, batch: int) -> tuple[nn.Module, Callable[[], None]]:
    """A network and its training step."""
    codes, actions = random_codes(batch, STEPS), random_actions(batch, STEPS)
    ids = codes.flatten(1)
    labels = ids.clone()
    labels[:, :STEP] = IGNORED
    model: Any = shape.world_model() if network == "ours" else shape.llama(STEPS * STEP)

    def loss() -> Tensor:
        if network == "ours":
            return model.loss(codes, actions)
        return model(input_ids=ids, labels=labels, use_cache=False).loss

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with shape.casting():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def measured_memory(**case: Any) -> int:
    """Peak bytes of a second step, in its own process."""
    command = [sys.executable, __file__, "--memory-of", json.dumps(case)]
    done = subprocess.run(command, env=sharp_memory(), check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(network: str, size: str, precision: str, batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    _, step = make_step(network, Shape(size=size, precision=precision), batch)
    step()
    return peak_bytes(step)


def measured(size: str, precision: str, batch: int, args: Any) -> list[Row]:
    shape = Shape(size=size, precision=precision)
    made = {network: make_step(network, shape, batch) for network in ("ours", "Llama")}
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = in_turns({network: step for network, (_, step) in made.items()}, rounds=args.rounds, clock=clock)
    rows = []
    for network, (model, _) in made.items():
        median = statistics.median(seconds[network])
        row: Row = {"size": size, "batch": batch, "network": network}
        row["M parameters"] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        row |= {"seconds": median, "tokens/s": batch * STEPS * STEP / median}
        row["x Llama"] = ratio(seconds["Llama"], seconds[network])
        if not args.no_memory:
            case = {"network": network, "size": size, "precision": precision, "batch": batch, "threads": args.threads}
            row["peak MB"] = measured_memory(**case) / 1e6
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, help="windows per batch; default: 4 for demo, 2 for large")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="bf16 uses autocast")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time in place of wall time: for busy machines")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    if args.memory_of:
        print(memory_of(**args.memory_of))
        return
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for size in args.sizes:
        for batch in args.batches or [BATCHES[size]]:
            rows += measured(size, args.precision, batch, args)
    more = {
        "rounds": args.rounds,
        "cpu time": args.cpu_time,
        "precision": args.precision,
        "window tokens": STEPS * STEP,
    }
    report("world_model_step", rows, args.output, packages=["transformers"], **more)


if __name__ == "__main__":
    main()
