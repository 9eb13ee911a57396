"""Child processes of a command: ranks, and a failure that terminates the others. No processes of a launcher."""

import time
from pathlib import Path

import process_targets
import pytest

from vidtok_plugin.common.processes import check_no_launcher, run_processes


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


def test_a_command_of_one_process_refuses_a_launcher() -> None:
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "0"}):
        check_no_launcher("tokenize", "start it alone", environment)
    with pytest.raises(ValueError, match="^tokenize: it must run as one process, .* WORLD_SIZE=8; start it alone.$"):
        check_no_launcher("tokenize", "start it alone", {"WORLD_SIZE": "8", "RANK": "5"})
