"""Processes that are given one task after another, where what comes next depends on earlier results."""

import logging
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from vidtok_plugin.common.commands import sentence, set_up_logging
from vidtok_plugin.common.processes import end_with_parent, failure, interrupts_blocked

PATIENCE = 5.0  # seconds for a process to end by itself

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class _Worker(Generic[Task]):
    """A process, the parent's end of its connection, and its task; None if it has none."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None


def run_tasks(
    start: Callable[..., Callable[[Task], Result]],
    next_task: Callable[[], Task | None],
    done: Callable[[Task, Result], object],
    num_processes: int,
    *args: Any,
    show_traceback: bool = False,
) -> None:
    """Give tasks to new processes until there are none left; if one fails, the others are ended.

    start: called once in each process with `args`; it returns what does a task. Importable in a new interpreter.
    next_task: the next task, or None if there is none as long as those under way are not done.
    done: called here with each task and its result, in the order in which they are finished.

    Raises:
        ChildProcessError: a process failed; the message includes its error.
    """
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger("vidtok_plugin").getEffectiveLevel()  # what this process logs, they log
    workers: list[_Worker[Task]] = []
    try:
        while True:
            for worker in workers:
                if worker.task is None:
                    _give(worker, next_task())
            while len(workers) < num_processes and (task := next_task()) is not None:
                ours, theirs = context.Pipe()
                process: BaseProcess = context.Process(
                    target=_work, args=(start, args, theirs, level, show_traceback), daemon=True
                )
                with interrupts_blocked():
                    process.start()
                theirs.close()  # the child's copy closes when it exits
                workers.append(_Worker(process=process, connection=ours))
                _give(workers[-1], task)
            busy = {worker.connection: worker for worker in workers if worker.task is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # never one of a socket or process
                assert worker.task is not None
                finished, worker.task = worker.task, None
                done(finished, _received(worker, 1 + workers.index(worker), num_processes))
    finally:
        for worker in workers:
            worker.connection.close()  # which ends those that wait for a task
            if worker.task is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()  # libraries such as SDL ignore a request to end
            worker.process.join()


def _give(worker: _Worker[Task], task: Task | None) -> None:
    if task is not None:
        worker.task = task
        with suppress(BrokenPipeError):  # it has ended, which the next reading from it reports
            worker.connection.send(task)


def _received(worker: _Worker[Any], number: int, num_processes: int) -> Any:
    """The result that a process has sent."""
    try:
        succeeded, value = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        raise ChildProcessError(
            f"Process {number} of {num_processes} failed: {failure(worker.process, worker.connection)}"
        ) from None
    if not succeeded:
        raise ChildProcessError(f"Process {number} of {num_processes} failed: {value}")
    return value


def _work(
    start: Callable[..., Callable[[Any], Any]],
    args: tuple[Any, ...],
    connection: Connection,
    level: int,
    show_traceback: bool,
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # libraries such as SDL unblock it
    set_up_logging(level)
    try:
        work = start(*args)
        while True:
            try:
                task = connection.recv()
            except (EOFError, ConnectionResetError):  # there are no more
                return
            connection.send((True, work(task)))
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        with suppress(BrokenPipeError):  # the parent has ended, for a reason that it says itself
            connection.send((False, sentence(error)))
        sys.exit(2)
