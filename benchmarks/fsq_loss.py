"""Time and memory of FSQ's training loss: the factorised form against the published one, a tokens x codebook matrix.

Forward and backward pass on the CPU; the two forms are timed alternately. Linux only.

    python benchmarks/fsq_loss.py --rounds 10
"""

import functools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from harness import Row, in_turns, make_parser, peak_bytes, ratio, report, sharp_memory
from torch import Tensor

from vidtok_plugin.tokenizer.objective import ObjectiveConfig
from vidtok_plugin.tokenizer.regularizers import FSQ

STEP = 500
PASSES = 5  # per turn; the first one runs with caches that hold the other form's data
CASES = {  # levels, and the shape of the latents (b, c, T, H, W)
    "192 tokens, 32,768 codes": ((8,) * 5, (1, 5, 3, 8, 8)),
    "17x256x256 (5,120 tokens), 262,144 codes": ((8,) * 6, (1, 6, 5, 32, 32)),
}
MAX_PLAIN = 2**24  # elements of the published form's matrix; larger ones would take 5 GB a copy


def factorised(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The loss as training computes it."""
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
    token_entropy = -(p * p.clamp(min=1e-5).log()).sum(-1).mean()
    batch_entropy = -(mean * mean.clamp(min=1e-5).log()).sum()
    commitment = (z - latents.detach()).square().mean()
    entropy_weight = cfg.regularizer_weight("entropy", STEP)
    commitment_weight = cfg.regularizer_weight("commitment", STEP)
    return entropy_weight * (token_entropy - batch_entropy) + commitment_weight * commitment


@functools.cache
def codebook(levels: tuple[int, ...]) -> Tensor:
    """All codes (c, codebook)."""
    indices = torch.arange(math.prod(levels)).view(1, -1, 1, 1)
    return FSQ(levels).indices_to_latents(indices)[0].flatten(1)


FORMS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {"factorised": factorised, "plain": plain}


def run_passes(form: str, levels: tuple[int, ...], shape: tuple[int, ...], count: int = PASSES) -> None:
    """Forward and backward pass, `count` times."""
    for _ in range(count):
        z = (1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
        FORMS[form](z, levels).backward()


def added_memory(form: str, levels: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Bytes by which one pass raises the peak resident memory of this process, with libraries already loaded."""
    run_passes(form, (2,) * len(levels), (1, len(levels), 1, 1, 1), 1)
    return peak_bytes(lambda: run_passes(form, levels, shape, 1))


def added_memory_in_subprocess(form: str, case: str, threads: int) -> int:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", form, case]
    env = sharp_memory() | {"CUDA_VISIBLE_DEVICES": ""}  # measure the CPU even on a machine with a GPU
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def measure(rounds: int, threads: int) -> list[Row]:
    rows = []
    for case, (levels, shape) in CASES.items():
        tokens = math.prod(shape) // len(levels)
        forms = [form for form in FORMS if form != "plain" or tokens * math.prod(levels) <= MAX_PLAIN]
        works = {form: functools.partial(run_passes, form, levels, shape) for form in forms}
        seconds = in_turns(works, rounds=rounds)
        for form in forms:
            rows.append(
                {
                    "case": case,
                    "form": form,
                    "ms a pass": 1000 * statistics.median(seconds[form]) / PASSES,
                    "MB": added_memory_in_subprocess(form, case, threads) / 1e6,
                    "x the factorised time": ratio(seconds[form], seconds["factorised"]),
                }
            )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=10)
    parser.add_argument("--memory-of", nargs=2, metavar=("FORM", "CASE"), help="only print the bytes of one pass")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        form, case = args.memory_of
        print(added_memory(form, *CASES[case]))
        return
    report("fsq_loss", measure(args.rounds, args.threads), args.output, rounds=args.rounds)


if __name__ == "__main__":
    main()
