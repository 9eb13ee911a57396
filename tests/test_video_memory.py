"""Memory stays flat while clips are read, files open and close, and bad files are met."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from video_memory import memory_over, random_clips, write_files  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_files(root)
    return root


def growth(folder: Path, reads: int, warm: int) -> float:
    """Growth in MiB from `warm` reads on."""
    memory = dict(memory_over(random_clips(folder), reads, every=warm))
    return memory[reads] - memory[warm]


def test_memory_is_flat_over_300_reads(folder: Path) -> None:
    """A clip is 0.4 MB: keeping the clips, or every tenth, would show."""
    assert growth(folder, 300, 100) < 10


@pytest.mark.slow
def test_memory_is_flat_over_10000_reads(folder: Path) -> None:
    """Of a clip's 432 KiB 4 may stay at most: heaps settle slowly with threads that come and go."""
    assert growth(folder, 10_000, 1000) < 36
