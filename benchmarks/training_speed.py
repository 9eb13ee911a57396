"""What each choice of training on a CPU gains: a step of vidtok_tiny's and of a Boxing-sized world model's training.

    python benchmarks/training_speed.py --threads 1

A step is forward and backward, by freed memory that is kept as in our runs. Contenders take turns; seconds are per clip
of 17x64x64, or per window of 8 latent steps, and "speedup" is the median of the rounds' ratios to the first row.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from harness import in_turns, make_parser, ratio, report
from shapes import TOKENS, random_actions, random_codes

from vidtok_plugin import VidTok, reference_path
from vidtok_plugin.common.freed_memory import keeping_freed_memory
from world_model import TransformerConfig, WorldModel, WorldModelConfig

CLIPS, WINDOWS, STEPS = 2, 4, 8
Step = Callable[[], None]


def autocast(mixed: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()


def tokenizer_step(*, mixed: bool = False, compiled: bool = False) -> Step:
    torch.manual_seed(0)
    model = VidTok.from_pretrained("vidtok_tiny").train()
    if compiled:
        model.compile_networks()
    video = torch.rand(CLIPS, 3, 17, 64, 64) * 2 - 1

    def step() -> None:
        with autocast(mixed):
            loss = (model(video).reconstruction - video).abs().mean()
        loss.backward()
        model.zero_grad()

    return step


def world_model_step(*, mixed: bool = False, reference: bool = False) -> Step:
    torch.manual_seed(0)
    sizes = TransformerConfig(width=256, depth=4, heads=4)
    config = WorldModelConfig(tokens=TOKENS, max_steps=STEPS, transformer=sizes, corruption=0.1, action_dropout=0.1)
    model = WorldModel(config).train()
    codes, actions = random_codes(WINDOWS, STEPS), random_actions(WINDOWS, STEPS)

    def step() -> None:
        with reference_path() if reference else nullcontext(), autocast(mixed):
            loss = model.loss(codes, actions)
        loss.backward()
        model.zero_grad()

    return step


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser(__doc__, rounds=10).parse_args(argv)
    torch.set_num_threads(args.threads)
    contenders = {
        "tokenizer": {
            "float32": tokenizer_step(),
            "bfloat16": tokenizer_step(mixed=True),
            "float32, compiled": tokenizer_step(compiled=True),
            "bfloat16, compiled": tokenizer_step(mixed=True, compiled=True),
        },
        "world model": {
            "float32, reference path": world_model_step(reference=True),
            "float32": world_model_step(),
            "bfloat16, reference path": world_model_step(mixed=True, reference=True),
            "bfloat16": world_model_step(mixed=True),
        },
    }
    rows = []
    with keeping_freed_memory():
        for network, steps in contenders.items():
            seconds = in_turns(steps, rounds=args.rounds, warmups=2)
            first, count = next(iter(seconds.values())), CLIPS if network == "tokenizer" else WINDOWS
            rows += [
                {"network": network, "training": name, "s": statistics.median(taken) / count, "x": ratio(first, taken)}
                for name, taken in seconds.items()
            ]
    report("training_speed", rows, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
