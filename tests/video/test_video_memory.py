"""Memory stays flat while clips are read, files open and close, and some are unreadable.

Each test measures a process of its own: what other tests have allocated and freed would count otherwise.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


def growth(folder: Path, reads: int, warm: int) -> float:
    """Growth in MiB from `warm` reads to `reads`."""
    output, rounds = folder / "memory.json", reads // warm
    options = ["--reads", str(reads), "--rounds", str(rounds), "--threads", "1", "--output", str(output)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "video_memory.py"), *options], check=True)
    memory = {row["reads"]: row["MiB"] for row in json.loads(output.read_text())["rows"]}
    return memory[reads] - memory[warm]


def test_memory_is_flat_over_80_reads(tmp_path: Path) -> None:
    """A clip is 0.4 MB, so keeping every third would exceed the bound."""
    assert growth(tmp_path, 160, 80) < 10


@pytest.mark.slow
def test_memory_is_flat_over_10000_reads(tmp_path: Path) -> None:
    """PyAV leaked 0.2 KiB per seek: 18 MiB here, and all memory of a worker in a long run."""
    assert growth(tmp_path, 10_000, 1000) < 12
