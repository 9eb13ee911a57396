"""Speed of a token store of a million steps: opening it, and random windows of 8 steps x 8 x 8 tokens in one process.

    python benchmarks/token_store.py [--steps 1000000] [--rounds 5] [--folder runs/benchmarks] [--threads 1]

A store is opened cold, with its files dropped from the page cache (as far as the system follows that advice), and
warm. Windows are read in batches, as in training, from a store in the page cache. Reports the median and the worst of
the rounds. Needs up to 2 GB of disk space. Linux only.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import FOLDER, Row, in_turns, make_parser, report, seconds_of

from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.writer import TokenStoreWriter

SIDE, FACTOR, WINDOW = 8, 4, 8
EPISODES = (1000, 50)  # steps per episode: few long episodes, or many short ones
EPISODES_PER_SHARD = 32  # the default of `vidtok-plugin tokenize`
BATCHES = (8, 64)
PATCH_DIM = 4  # of continuous tokens
WINDOWS = 20_000  # per round


def write(folder: Path, kind: str, steps: int, num_steps: int) -> Path:
    """A store of `num_steps` steps of noise with actions, in episodes of `steps`."""
    discrete = kind == "discrete"
    sizes = {"codebook_size": 32768} if discrete else {"patch_dim": PATCH_DIM}
    metadata = StoreMetadata(
        adapter_hash="a",
        token_hash="b",
        tokenizer={},
        kind=kind,  # type: ignore[arg-type]
        height=SIDE,
        width=SIDE,
        temporal_factor=FACTOR,
        fps=30.0,
        action_space={"kind": "discrete", "size": 18},
        **sizes,  # type: ignore[arg-type]
    )
    codes = torch.randint(32768, (steps, SIDE, SIDE), dtype=torch.int32)
    data = {"codes": codes} if discrete else {"patches": torch.randn(steps, SIDE, SIDE, PATCH_DIM)}
    data |= {
        "actions": torch.randint(18, (steps, FACTOR)),
        "num_actions": torch.full((steps,), FACTOR, dtype=torch.uint8),
    }
    writer = TokenStoreWriter(folder, metadata)
    episodes = num_steps // steps
    for number, first in enumerate(range(0, episodes, EPISODES_PER_SHARD)):
        entries = [
            StoredEpisode(name=f"episode_{i:06d}.mp4", steps=steps, frames=1 + (steps - 1) * FACTOR, digest=f"{i:064x}")
            for i in range(first, min(first + EPISODES_PER_SHARD, episodes))
        ]
        writer.write_shard("train", entries, [data] * len(entries), number)
    return folder


def drop_from_cache(folder: Path) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def open_store(folder: Path) -> TokenStore:
    store = TokenStore(folder, "train")
    assert store.num_steps
    return store


def opening_seconds(folder: Path, rounds: int, *, cold: bool) -> list[float]:
    seconds = []
    for _ in range(rounds):
        if cold:
            drop_from_cache(folder)
        seconds.append(seconds_of(lambda: open_store(folder)))
    return seconds


def window_rates(folder: Path, rounds: int) -> dict[int, list[float]]:
    """Windows per second in each round, by batch size."""
    store, rng = open_store(folder), np.random.default_rng(0)

    def read(batch: int) -> None:
        for _ in range(WINDOWS // batch):
            episodes = rng.integers(len(store), size=batch)
            store.windows(episodes, rng.integers(store.steps[episodes] - WINDOW + 1), WINDOW)

    seconds = in_turns({str(batch): lambda batch=batch: read(batch) for batch in BATCHES}, rounds=rounds)  # type: ignore[misc]
    return {batch: [WINDOWS // batch * batch / taken for taken in seconds[str(batch)]] for batch in BATCHES}


def measure(root: Path, num_steps: int, rounds: int) -> list[Row]:
    rows: list[Row] = []

    def add(what: dict[str, Any], unit: str, values: Sequence[float], worst: float) -> None:
        rows.append({**what, "median": statistics.median(values), "worst": worst, "unit": unit})

    for kind in ("discrete", "continuous"):
        for steps in EPISODES:
            with tempfile.TemporaryDirectory(dir=root) as name:
                folder = write(Path(name), kind, steps, num_steps)
                tokens = {"kind": kind, "episodes": num_steps // steps, "steps": steps}
                for how in ("cold", "warm"):
                    seconds = opening_seconds(folder, rounds, cold=how == "cold")
                    add({"measure": f"open, {how}", **tokens}, "seconds", seconds, max(seconds))
                for batch, rates in window_rates(folder, rounds).items():
                    add({"measure": f"windows by {batch}", **tokens}, "a second", rates, min(rates))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the stores, which are removed afterwards")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(args.folder, args.steps, args.rounds)
    report("token_store", rows, args.output, packages=("numpy",), rounds=args.rounds)


if __name__ == "__main__":
    main()
