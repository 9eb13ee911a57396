"""The basis of the benchmarks: interleaved timing, peak memory, the machine's matrix-product rate, and reports.

Machines are noisy, so contenders take turns in one process, and a figure is the median over rounds. A ratio is the
median of the ratios per round, since other load affects both contenders of a round.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

FOLDER = Path("runs/benchmarks")  # of results

Row = Mapping[str, Any]


def make_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds, whose median is reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    parser.add_argument("--output", type=Path, help=f"JSON file of the results (default: {FOLDER}/NAME.json)")
    return parser


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Wall time of one call, or the time by another clock, including GPU work."""
    synchronize()
    start = clock()
    work()
    synchronize()
    return clock() - start


def in_turns(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender in each round; a round runs all contenders once."""
    for _ in range(warmups):
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            seconds[name].append(seconds_of(work, clock))
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as long `slower` takes: the median of the ratios per round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def peak_bytes(work: Callable[[], Any]) -> int:
    """Peak memory of one call beyond that in use before it, in bytes: resident on a CPU, allocated on a GPU.

    On a CPU it needs Linux, and is exact only with `MALLOC_MMAP_THRESHOLD_=65536` in the environment (`sharp_memory`);
    otherwise the process keeps freed blocks and reuses them in the next call.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _high_water_mark()
    work()
    return _high_water_mark() - before


def _high_water_mark() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def sharp_memory() -> dict[str, str]:
    """The environment for measuring memory: freed blocks of more than 64 KiB return to the system at once."""
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


def matmul_rate(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", size: int = 2048) -> float:
    """FLOP per second of a square matrix product, the best of several; the reference for convolutions."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = in_turns({"product": lambda: a @ b}, rounds=10, warmups=3)["product"]
    return 2 * size**3 / min(seconds)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> dict[str, Any]:
    """A description of the machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def report(name: str, rows: Sequence[Row], output: Path | None, *, packages: Sequence[str] = (), **more: Any) -> None:
    """Prints `rows` as a table and writes them to a JSON file, with the machine, versions and number of threads.

    packages: whose versions are included beside those of Python and PyTorch; None for one that is not installed.
    more: other entries of the file, such as the number of rounds.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=max(120, 16 * len(columns))).print(table)
    record = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {package: _version(package) for package in packages},
        "threads": torch.get_num_threads(),
        **more,
        "rows": list(rows),
    }
    path = output or FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
