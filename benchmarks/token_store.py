"""How fast a token store of a million steps opens, and gives random windows of 8 steps x 8 x 8 tokens to one process.

    python benchmarks/token_store.py [--steps 1000000] [--rounds 5] [--folder runs/benchmarks]

A store is opened cold, its files having been dropped from the page cache (as far as the system follows that advice),
and warm. Windows come in batches, as training reads them, from a store that is in the page cache. Told are medians
over the rounds, and the worst. Needs up to 2 GB on the disk. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fsq_loss import processor

from vidtok_plugin.shards import StoredEpisode
from vidtok_plugin.store import StoreMetadata, TokenStore
from vidtok_plugin.store_writer import TokenStoreWriter

SIDE, FACTOR, WINDOW = 8, 4, 8
EPISODES = (1000, 50)  # steps of each: few long ones, and many short ones
SHARD = 32  # episodes, the default of `vidtok-plugin tokenize`
BATCHES = (8, 64)
DIM = 4  # of continuous tokens
WINDOWS = 20_000  # of a round


def write(folder: Path, kind: str, steps: int, num_steps: int) -> Path:
    """A store of `num_steps` steps in episodes of `steps`, of noise and actions."""
    discrete = kind == "discrete"
    sizes = {"codebook_size": 32768} if discrete else {"patch_dim": DIM}
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
    data = {"codes": codes} if discrete else {"patches": torch.randn(steps, SIDE, SIDE, DIM)}
    data |= {
        "actions": torch.randint(18, (steps, FACTOR)),
        "num_actions": torch.full((steps,), FACTOR, dtype=torch.uint8),
    }
    writer = TokenStoreWriter(folder, metadata)
    episodes = num_steps // steps
    for number, first in enumerate(range(0, episodes, SHARD)):
        entries = [
            StoredEpisode(name=f"episode_{i:06d}.mp4", steps=steps, frames=1 + (steps - 1) * FACTOR, digest=f"{i:064x}")
            for i in range(first, min(first + SHARD, episodes))
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


def opening_seconds(folder: Path) -> float:
    start = time.perf_counter()
    store = TokenStore(folder, "train")
    assert store.num_steps
    return time.perf_counter() - start


def window_rates(folder: Path, batch: int, rounds: int) -> list[float]:
    """Windows a second of each round; before them all shards are touched."""
    store, rng = TokenStore(folder, "train"), np.random.default_rng(0)
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(WINDOWS // batch):
            episodes = rng.integers(len(store), size=batch)
            store.windows(episodes, rng.integers(store.steps[episodes] - WINDOW + 1), WINDOW)
        rates.append(WINDOWS // batch * batch / (time.perf_counter() - start))
    return rates[1:]


def measure(root: Path, num_steps: int, rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def add(measure: str, kind: str, steps: int, unit: str, values: list[float], worst: float) -> None:
        episodes = num_steps // steps
        what = {"measure": measure, "kind": kind, "episodes": episodes, "steps": steps, "unit": unit}
        rows.append({**what, "median": statistics.median(values), "worst": worst})

    for kind in ("discrete", "continuous"):
        for steps in EPISODES:
            with tempfile.TemporaryDirectory(dir=root) as name:
                folder = write(Path(name), kind, steps, num_steps)
                for how in ("cold", "warm"):
                    seconds = []
                    for _ in range(rounds):
                        if how == "cold":
                            drop_from_cache(folder)
                        seconds.append(opening_seconds(folder))
                    add(f"open, {how}", kind, steps, "seconds", seconds, max(seconds))
                for batch in BATCHES:
                    rates = window_rates(folder, batch, rounds)
                    add(f"windows, batches of {batch}", kind, steps, "a second", rates, min(rates))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="for the stores and the JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(args.folder, args.steps, args.rounds)
    print(f"{'measure':26}{'kind':12}{'episodes':>10}{'of steps':>10}{'median':>12}{'worst':>12}")
    for row in rows:
        digits = 3 if row["unit"] == "seconds" else 0
        print(
            f"{row['measure']:26}{row['kind']:12}{row['episodes']:10,}{row['steps']:10,}"
            f"{row['median']:12,.{digits}f}{row['worst']:12,.{digits}f} {row['unit']}"
        )
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    record = {"machine": machine, "versions": versions, "threads": args.threads, "rounds": args.rounds, "rows": rows}
    output = args.folder / "token_store.json"
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(output)


if __name__ == "__main__":
    main()
