"""The memory of training published models: counted for GPUs, and compared with real steps on this CPU.

    python benchmarks/training_memory.py                # the counted table (some minutes)
    python benchmarks/training_memory.py --measure      # real steps at small sizes, each in its own process

Neither uses a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from harness import make_parser, peak_bytes, report, sharp_memory
from rich.progress import track
from training_memory_count import count_step, training_memory, training_step

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes

PRESETS = ("vidtok_kl_causal_488_4chn", "vidtok_fsq_causal_488_32768_v1_1", "vidtok_kl_causal_41616_4chn")
MEASURED = "vidtok_kl_causal_488_4chn"
FRAMES = 17
WIDTH = 64  # of the measured model: half of the published one
SIZES = (32, 48, 64)  # measured pixels a side
TARGETS = (128, 256)
PRECISIONS = ("32-true", "bf16-mixed")
GB = 1e9


def counted() -> list[dict[str, Any]]:
    rows = []
    choices = list(product(PRESETS, TARGETS, ("all", "decoder"), PRECISIONS, (False, True)))
    for name, size, trained, precision, checkpointing in track(choices, "counting"):
        estimate = training_memory(
            presets()[name].architecture,
            frames=FRAMES,
            height=size,
            width=size,
            trained=trained,
            precision=precision,
            checkpointing=checkpointing,
            ema=True,
        )
        row = {"preset": name, "size": size, "trained": trained, "precision": precision}
        items = {f"{name} GB": value / GB for name, value in vars(estimate).items()}
        rows.append({**row, "checkpointing": checkpointing, **items, "total GB": estimate.total / GB})
    return rows


def one_measurement(size: int, width: int, checkpointing: bool, rounds: int) -> dict[str, Any]:
    """Live bytes, resident bytes and CPU seconds of real steps in float32, in this process."""
    tokenizer = VidTok.from_preset(MEASURED, ch=width).train()
    tokenizer.checkpoint_activations(checkpointing)
    objective = Objective(ObjectiveConfig(perceptual="none", discriminator="none"))
    video = torch.rand(1, 3, FRAMES, size, size) * 2 - 1
    count_step(tokenizer, objective, video[:, :, :5, :16, :16])  # starts libraries, allocates gradients
    seconds = []

    def steps() -> None:
        for _ in range(rounds):
            start = time.process_time()
            training_step(tokenizer, objective, video)
            seconds.append(time.process_time() - start)

    resident = peak_bytes(steps)
    gradients = [p.grad for p in tokenizer.parameters() if p.grad is not None]
    with LiveBytes([*tokenizer.parameters(), *gradients, *objective.parameters(), video]) as live:
        training_step(tokenizer, objective, video)
    return {"live": live.peak, "resident": resident, "seconds": seconds}


def measured(rounds: int, threads: int) -> list[dict[str, Any]]:
    rows = []
    env = sharp_memory() | {"CUDA_VISIBLE_DEVICES": ""}  # the CPU's memory is measured, even if there is a GPU
    for size, checkpointing in track(list(product(SIZES, (False, True))), "measuring"):
        what = ["--one", str(size), str(WIDTH), str(int(checkpointing)), str(rounds)]
        command = [sys.executable, __file__, "--threads", str(threads), *what]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        row = {"width": WIDTH, "size": size, "checkpointing": checkpointing}
        rows.append(row | {"counted GB": count(size, checkpointing) / GB, **in_gb(found)})
    return rows


def in_gb(found: dict[str, Any]) -> dict[str, float]:
    median = statistics.median(found["seconds"])
    return {"live GB": found["live"] / GB, "resident GB": found["resident"] / GB, "CPU seconds": median}


def count(size: int, checkpointing: bool, width: int = WIDTH) -> int:
    arch = replace(presets()[MEASURED].architecture, ch=width)
    settings: dict[str, Any] = {"precision": "32-true", "perceptual": False, "discriminator": "none"}
    sizes = {"frames": FRAMES, "height": size, "width": size}
    return training_memory(arch, checkpointing=checkpointing, **sizes, **settings).activations


def extrapolated(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Resident bytes of larger clips, by a linear fit over pixels of the measured ones; and the count there."""
    found = []
    for checkpointing, size in product((False, True), TARGETS):
        points = [(row["size"] ** 2, row["resident GB"]) for row in rows if row["checkpointing"] == checkpointing]
        slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
        row = {"width": WIDTH, "size": size, "checkpointing": checkpointing}
        counted_gb = count(size, checkpointing) / GB
        found.append({**row, "counted GB": counted_gb, "extrapolated GB": intercept + slope * size**2})
    return found


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.set_defaults(threads=1)
    parser.add_argument("--measure", action="store_true", help="measure real steps at small sizes instead")
    parser.add_argument("--one", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.one:
        size, width, checkpointing, rounds = args.one
        print(json.dumps(one_measurement(size, width, bool(checkpointing), rounds)))
        return
    if args.measure:
        rows = measured(args.rounds, args.threads)
        report("training_memory_measured", rows + extrapolated(rows), args.output, rounds=args.rounds)
    else:
        report("training_memory", counted(), args.output)


if __name__ == "__main__":
    main()
