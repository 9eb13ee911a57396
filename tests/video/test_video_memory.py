"""Memory stays flat while clips are read, files open and close, and bad files are met."""

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
    """Growth in MiB from `warm` reads on."""
    memory = dict(video_memory.memory_over(video_memory.random_clips(folder), reads, every=warm))
    return memory[reads] - memory[warm]


def test_memory_is_flat_over_300_reads(folder: Path) -> None:
    """A clip is 0.4 MB: keeping the clips, or every tenth, would show."""
    assert growth(folder, 300, 100) < 10


@pytest.mark.slow
def test_memory_is_flat_over_10000_reads(folder: Path) -> None:
    """PyAV lost 0.2 KiB at each seek, which added up to 18 MiB here, and to a worker's memory in a long run."""
    assert growth(folder, 10_000, 1000) < 12
