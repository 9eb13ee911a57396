"""Processes that are given tasks do them all, in any order; if one fails, its error is reported and the others end."""

import multiprocessing
from pathlib import Path

import pytest
from process_targets import start_squares

from vidtok_plugin.common import task_processes
from vidtok_plugin.common.task_processes import run_tasks

pytestmark = pytest.mark.slow


def test_every_task_is_done_and_the_next_may_depend_on_results(tmp_path: Path) -> None:
    waiting, results = [3, 2, 1, 0], []  # 4 is added when 1 is done; 0 waits for all others

    def done(task: int, result: int) -> None:
        results.append((task, result))
        if task == 1:
            waiting.append(4)

    run_tasks(start_squares, lambda: waiting.pop() if waiting else None, done, 2, tmp_path, "")
    assert results[-1] == (0, 0) and sorted(results) == [(number, number**2) for number in range(5)]


@pytest.mark.parametrize(
    ("how", "reason"), [("raise", "Number -1 is negative."), ("kill", "it was terminated by signal 9; run the same")]
)
def test_a_failing_process_is_reported_and_the_others_end(
    tmp_path: Path, how: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that ignore SIGTERM, too: a recording of CartPole waited for its processes forever, because of SDL."""
    monkeypatch.setattr(task_processes, "PATIENCE", 0.1)
    before = multiprocessing.active_children()  # of other tests: loader workers live until their loader is collected
    waiting = [-1, 0]  # 0 would wait forever
    with pytest.raises(ChildProcessError, match=rf"Process \d of 2 failed: {reason}"):
        run_tasks(start_squares, lambda: waiting.pop() if waiting else None, lambda *_: None, 2, tmp_path, how)
    assert not set(multiprocessing.active_children()) - set(before)
