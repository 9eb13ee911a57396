"""Time and memory of FSQ's training loss: the factorised form against the published one, which is a matrix of tokens x
codebook. Forward and backward; the forms take turns. Told are medians over the rounds of each round's best pass, and
`x time` from the processor's seconds. Linux only.

    python benchmarks/fsq_loss.py --rounds 10
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.tokenizer.objective import ObjectiveConfig
from vidtok_plugin.tokenizer.regularizers import FSQ

STEP = 500
PASSES = 5  # of a round: the first find caches that are full of the other form's
CASES = {  # levels, and the latents' shape (b, c, T, H, W)
    "192 tokens, 32,768 codes": ((8,) * 5, (1, 5, 3, 8, 8)),
    "17x256x256 (5,120 tokens), 262,144 codes": ((8,) * 6, (1, 6, 5, 32, 32)),
}
LARGEST_PLAIN = 2**24  # elements of its matrix: it is not asked for 5 GB a copy


def factorised(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The loss as the tokenizer's training takes it."""
    terms = FSQ(levels)(z, sample=False, with_terms=True).terms
    assert terms is not None
    cfg = ObjectiveConfig()
    return torch.stack([cfg.regularizer_weight(name, STEP) * term for name, term in terms.items()]).sum()


def plain(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The loss as published: each token's probabilities over the whole codebook."""
    cfg = ObjectiveConfig()
    latents = FSQ(levels)(z, sample=False, with_terms=False).latents
    p = (200 * z.movedim(1, -1).flatten(0, -2) @ codebook(levels)).softmax(-1)
    mean = p.mean(0)
    of_tokens = -(p * p.clamp(min=1e-5).log()).sum(-1).mean()
    of_batch = -(mean * mean.clamp(min=1e-5).log()).sum()
    commitment = (z - latents.detach()).square().mean()
    entropy, pull = cfg.regularizer_weight("entropy", STEP), cfg.regularizer_weight("commitment", STEP)
    return entropy * (of_tokens - of_batch) + pull * commitment


@functools.cache
def codebook(levels: tuple[int, ...]) -> Tensor:
    """All codes (c, codebook)."""
    indices = torch.arange(math.prod(levels)).view(1, -1, 1, 1)
    return FSQ(levels).indices_to_latents(indices)[0].flatten(1)


FORMS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {"factorised": factorised, "plain": plain}


def run(form: str, case: str) -> tuple[float, float]:
    """One forward and backward pass; its seconds, and those of the processor, which other work does not prolong."""
    levels, shape = CASES[case]
    z = (1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    start, start_of_processor = time.perf_counter(), time.process_time()
    FORMS[form](z, levels).backward()
    return time.perf_counter() - start, time.process_time() - start_of_processor


def added_memory(form: str, case: str) -> float:
    """By how many bytes one pass raises the peak of this process's resident memory, libraries being warm."""
    levels = (2,) * len(CASES[case][0])
    FORMS[form](torch.randn(1, len(levels), 1, 1, 1, requires_grad=True), levels).backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = resident("VmRSS")
    run(form, case)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def in_a_process_of_its_own(form: str, case: str, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", form, case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(rounds: int, threads: int) -> list[dict[str, object]]:
    rows = []
    for case, (levels, shape) in CASES.items():
        tokens = math.prod(shape) // len(levels)
        forms = [form for form in FORMS if form != "plain" or tokens * math.prod(levels) <= LARGEST_PLAIN]
        seconds: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
        for _ in range(rounds):
            for form in forms:
                passes = [run(form, case) for _ in range(PASSES)]
                seconds[form].append((min(wall for wall, _ in passes), min(busy for _, busy in passes)))
        for form in forms:
            rows.append(
                {
                    "case": case,
                    "form": form,
                    "seconds": statistics.median(wall for wall, _ in seconds[form]),
                    "processor_seconds": statistics.median(busy for _, busy in seconds[form]),
                    "megabytes": in_a_process_of_its_own(form, case, threads) / 1e6,
                    "times_the_factorised": statistics.median(
                        ours / best for (_, ours), (_, best) in zip(seconds[form], seconds["factorised"], strict=True)
                    ),
                }
            )
    return rows


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/fsq_loss.json"))
    parser.add_argument("--memory-of", nargs=2, metavar=("FORM", "CASE"), help="print the bytes of one pass alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(added_memory(*args.memory_of))
        return
    rows = measure(args.rounds, args.threads)
    print(f"{'case':42}{'form':12}{'seconds':>10}{'processor':>11}{'MB':>9}{'x time':>9}")
    for row in rows:
        print(
            f"{row['case']:42}{row['form']:12}{row['seconds']:10.4f}{row['processor_seconds']:11.4f}"
            f"{row['megabytes']:9.1f}{row['times_the_factorised']:9.1f}"
        )
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "versions": versions, "threads": args.threads, "rounds": args.rounds, "rows": rows}
    args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
