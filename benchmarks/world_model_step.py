"""A training step of the world model against one of a Llama of the same shape, under the same loss.

    python benchmarks/world_model_step.py [--sizes demo large] [--precision bf16]

Forward, cross entropy over the same tokens, backward, AdamW. Contenders take turns; memory is the peak of a step beyond
weights, gradients and the optimizer's state, in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import torch
from harness import in_turns, make_parser, peak_bytes, ratio, report, sharp_memory
from shapes import SIZES, STEP, Shape, random_actions, random_codes
from torch.nn import functional as F

STEPS = 5  # latent steps of a window; the last 4 are predicted


def step_of(network: str, shape: Shape, batch: int) -> Callable[[], None]:
    codes, actions = random_codes(batch, STEPS), random_actions(batch, STEPS)
    model = shape.world_model() if network == "ours" else shape.llama(STEPS * STEP)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with shape.casting():
            if network == "ours":
                loss = model.loss(codes, actions)
            else:
                tokens = codes.flatten(1)
                logits = model(tokens[:, :-1]).logits[:, STEP - 1 :]
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, STEP:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def memory_of(network: str, size: str, precision: str, batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    step = step_of(network, Shape(size=size, precision=precision), batch)
    step()
    return peak_bytes(step)


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[4])
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="bf16 is by autocast")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(**args.memory_of))
        return
    torch.set_num_threads(args.threads)
    rows = []
    for size, batch in product(args.sizes, args.batches):
        shape = Shape(size=size, precision=args.precision)
        seconds = in_turns({name: step_of(name, shape, batch) for name in ("ours", "Llama")}, rounds=args.rounds)
        for name, values in seconds.items():
            case = {"network": name, "size": size, "precision": args.precision, "batch": batch, "threads": args.threads}
            command = [sys.executable, __file__, "--memory-of", json.dumps(case)]
            memory = subprocess.run(command, env=sharp_memory(), check=True, capture_output=True, text=True)
            rows.append(
                {
                    "model": size,
                    "batch": batch,
                    "network": name,
                    "tokens/s": batch * STEPS * STEP / statistics.median(values),
                    "x Llama": ratio(seconds["Llama"], values),
                    "peak MB": int(memory.stdout.split()[-1]) / 1e6,
                }
            )
    report("world_model_step", rows, args.output, packages=["transformers"], rounds=args.rounds)


if __name__ == "__main__":
    main()
