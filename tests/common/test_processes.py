"""Child processes of a command: ranks, and a failure that terminates the others."""

import time
from pathlib import Path

import process_targets
import pytest

from vidtok_plugin.common.processes import Process, launched_process, run_processes


@pytest.mark.slow
def test_each_process_knows_its_rank(tmp_path: Path) -> None:
    run_processes(process_targets.write_rank, 3, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "process 1 of 3",
        "1": "process 2 of 3",
        "2": "process 3 of 3",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "Process 2 of 2 failed: Video x.mp4 is damaged."),
        ("kill", "Process 2 of 2 failed: it was terminated by signal 9; run the same command again to continue."),
        ("bug", "Process 2 of 2 failed: it exited with code 1; its own error is printed above."),
    ],
)
def test_a_failing_process_terminates_the_others_and_is_reported(tmp_path: Path, how: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(ChildProcessError) as raised:
        run_processes(process_targets.misbehave, 2, tmp_path, how)
    assert str(raised.value) == reason
    assert time.monotonic() - start < 300


def test_rank_and_world_size_come_from_the_launcher() -> None:
    assert launched_process({}) == Process() == launched_process({"LOCAL_RANK": "3"})
    assert launched_process({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Process(
        rank=5, world_size=8, local_rank=1
    )
    assert launched_process({"RANK": "5", "WORLD_SIZE": "8"}).local_rank == 5


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"}],
)
def test_an_inconsistent_environment_is_an_error(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"must set RANK and WORLD_SIZE, .* got {next(iter(environment))}="):
        launched_process(environment)
