"""Functions that the tests of processes run in child processes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vidtok_plugin.common.processes import Process


def write_rank(process: Process, folder: Path) -> None:
    (folder / str(process.rank)).write_text(str(process))


def misbehave(process: Process, folder: Path, how: str) -> None:
    """Rank 1 fails while the others would run far too long."""
    write_rank(process, folder)
    if process.rank != 1:
        time.sleep(600)
    while len(list(folder.iterdir())) < process.world_size:
        time.sleep(0.01)
    if how == "raise":
        raise ValueError("Video x.mp4 is\n damaged.")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a bug")


def start_squares(folder: Path, how: str) -> Callable[[int], int]:
    """Squares numbers, the first only when all others are done; fails at -1."""

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as SDL does

    def square(number: int) -> int:
        if number == 0:
            while len(list(folder.iterdir())) < 4:
                time.sleep(0.01)
        if number < 0 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ValueError("Number -1 is\n negative.")
        (folder / str(number)).touch()
        return number**2

    return square
