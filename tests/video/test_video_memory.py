"""Memory stays flat while clips are read, files open and close, and some are unreadable."""

from pathlib import Path

import pytest
from benchmark_files import load_benchmark

video_memory = load_benchmark("video_memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    video_memory.write_files(root)
    return root


def growth(folder: Path, reads: int, warm: int) -> float:
    """Growth in MiB after `warm` reads."""
    memory = dict(video_memory.memory_over(video_memory.random_clips(folder), reads, every=warm))
    return memory[reads] - memory[warm]


def test_memory_is_flat_over_80_reads(folder: Path) -> None:
    """A clip is 0.4 MB, so keeping every third would exceed the bound."""
    assert growth(folder, 160, 80) < 10


@pytest.mark.slow
def test_memory_is_flat_over_10000_reads(folder: Path) -> None:
    """PyAV leaked 0.2 KiB per seek: 18 MiB here, and all memory of a worker in a long run."""
    assert growth(folder, 10_000, 1000) < 12
