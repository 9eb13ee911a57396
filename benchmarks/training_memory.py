"""The memory of training published models: counted for GPUs, and measured beside the count on this CPU.

    python benchmarks/training_memory.py                # the counted table, some minutes
    python benchmarks/training_memory.py --measure      # real steps at small sizes, in processes of their own

Both write JSON with the machine and the versions (`--output`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.memory import LiveBytes
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.training_memory import count_step, training_memory, training_step

PRESETS = ("vidtok_kl_causal_488_4chn", "vidtok_fsq_causal_488_32768_v1_1", "vidtok_kl_causal_41616_4chn")
MEASURED = "vidtok_kl_causal_488_4chn"
FRAMES = 17
WIDTH = 64  # of the model that is measured: half of the published
SIZES = (32, 48, 64)  # pixels a side that are measured
TARGETS = (128, 256)
GB = 1e9


def counted(names: tuple[str, ...] = PRESETS) -> list[dict[str, Any]]:
    rows = []
    choices = product(names, TARGETS, ("all", "decoder"), ("32-true", "bf16-mixed"), (False, True))
    for name, size, trained, precision, checkpointing in choices:
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
        rows.append({**row, "checkpointing": checkpointing, **vars(estimate), "total": estimate.total})
        print_row(rows[-1])
    return rows


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['preset']:34} 17x{row['size']}x{row['size']} {row['trained']:8} {row['precision']:11}"
        f"{'recomputed' if row['checkpointing'] else 'kept':11}"
        + "  ".join(f"{part} {row[part] / GB:5.2f}" for part in ("activations", "total")),
        flush=True,
    )


def peak_memory() -> int:
    """The most bytes that this process has had resident since the peak was last set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def one_measurement(size: int, width: int, checkpointing: bool, rounds: int) -> dict[str, Any]:
    """Live bytes, resident bytes and seconds of real steps in float32, in this process."""
    torch.set_num_threads(1)
    tokenizer = VidTok.from_preset(MEASURED, ch=width).train()
    tokenizer.checkpoint_activations(checkpointing)
    objective = Objective(ObjectiveConfig(perceptual="none", discriminator="none"))
    video = torch.rand(1, 3, FRAMES, size, size) * 2 - 1
    count_step(tokenizer, objective, video[:, :, :5, :16, :16])  # libraries start, gradients are there
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, seconds = peak_memory(), []
    for _ in range(rounds):
        start = time.process_time()
        training_step(tokenizer, objective, video)
        seconds.append(time.process_time() - start)
    resident = peak_memory() - before
    gradients = [p.grad for p in tokenizer.parameters() if p.grad is not None]
    with LiveBytes([*tokenizer.parameters(), *gradients, *objective.parameters(), video]) as live:
        training_step(tokenizer, objective, video)
    return {"live": live.peak, "resident": resident, "seconds": seconds}


def measured(rounds: int) -> list[dict[str, Any]]:
    rows = []
    # A fixed threshold, since glibc's own grows with what is freed, and then keeps more.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    for size, checkpointing in product(SIZES, (False, True)):
        command = [sys.executable, __file__, "--one", str(size), str(WIDTH), str(int(checkpointing)), str(rounds)]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        row = {"width": WIDTH, "size": size, "checkpointing": checkpointing, **json.loads(done.stdout)}
        row["counted"] = count(size, checkpointing)
        rows.append(row)
        print(
            f"width {WIDTH} 17x{size}x{size} {'recomputed' if checkpointing else 'kept':10}"
            + "  ".join(f"{part} {row[part] / GB:.3f} GB" for part in ("counted", "live", "resident"))
            + f"  {statistics.median(row['seconds']):.1f} s",
            flush=True,
        )
    return rows


def count(size: int, checkpointing: bool, width: int = WIDTH) -> int:
    arch = replace(presets()[MEASURED].architecture, ch=width)
    settings: dict[str, Any] = {"precision": "32-true", "perceptual": False, "discriminator": "none"}
    sizes = {"frames": FRAMES, "height": size, "width": size}
    return training_memory(arch, checkpointing=checkpointing, **sizes, **settings).activations


def extrapolated(rows: list[dict[str, Any]], checkpointing: bool) -> dict[str, Any]:
    """What the line through the measured resident bytes, by pixels, tells of larger clips; and the count there."""
    points = [(row["size"] ** 2, row["resident"]) for row in rows if row["checkpointing"] == checkpointing]
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    result: dict[str, Any] = {"checkpointing": checkpointing}
    for size in TARGETS:
        result[str(size)] = {"resident": intercept + slope * size**2, "counted": count(size, checkpointing)}
        print(f"17x{size}x{size} {'recomputed' if checkpointing else 'kept':10} {result[str(size)]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure real steps at small sizes instead")
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed in each process")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--one", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        size, width, checkpointing, rounds = args.one
        print(json.dumps(one_measurement(size, width, bool(checkpointing), rounds)))
        return
    versions = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    versions |= {"python": platform.python_version(), "torch": torch.__version__}
    if args.measure:
        rows = measured(args.rounds)
        larger = [extrapolated(rows, checkpointing) for checkpointing in (False, True)]
        results = {**versions, "measured": rows, "extrapolated": larger}
    else:
        results = {**versions, "counted": counted()}
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
