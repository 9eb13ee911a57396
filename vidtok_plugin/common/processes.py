"""Splitting a command's work over processes of this machine, without torch.distributed."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from vidtok_plugin.common.commands import sentence, set_up_logging


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of `world_size` processes on this machine."""

    rank: int
    world_size: int

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.world_size}"


def check_no_launcher(command: str, remedy: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to run as one of several processes that a launcher such as torchrun has started.

    Raises:
        ValueError: WORLD_SIZE is set, and not to 1.
    """
    world_size = environment.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ValueError(
            f"{command}: it must run as one process, but a launcher has set WORLD_SIZE={world_size}; {remedy}."
        )


def run_processes(run: Callable[..., object], world_size: int, *args: Any, show_traceback: bool = False) -> None:
    """Calls `run(process, *args)` in `world_size` new processes and waits; if one fails, the others are terminated.

    `run` must be importable in a new interpreter.

    Raises:
        ChildProcessError: one failed; the message includes its error.
    """
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger("vidtok_plugin").getEffectiveLevel()  # what this process logs, they log
    children: dict[int, tuple[BaseProcess, Process, Connection]] = {}  # by sentinel
    try:
        for rank in range(world_size):
            process = Process(rank=rank, world_size=world_size)
            receiver, sender = context.Pipe(duplex=False)
            arguments = (run, process, args, sender, level, show_traceback)
            child: BaseProcess = context.Process(target=_child, args=arguments, daemon=True)
            with interrupts_blocked():
                child.start()
            sender.close()  # the child's copy closes when it exits
            children[child.sentinel] = child, process, receiver
        while children:
            for sentinel in wait(list(children)):
                assert isinstance(sentinel, int)
                child, process, receiver = children.pop(sentinel)
                child.join()
                if child.exitcode != 0:
                    raise ChildProcessError(f"{str(process).capitalize()} failed: {failure(child, receiver)}")
    finally:
        for child, _, _ in children.values():
            child.terminate()
        for child, _, _ in children.values():
            child.join()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal. Those started here never receive it: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _child(
    run: Callable[..., object],
    process: Process,
    args: tuple[Any, ...],
    errors: Connection,
    level: int,
    show_traceback: bool,
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # libraries such as SDL unblock it
    set_up_logging(level)
    try:
        run(process, *args)
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        errors.send(sentence(error))
        sys.exit(2)


def end_with_parent() -> None:
    """Exits when the parent does, so that a killed parent leaves no process behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def failure(child: BaseProcess, errors: Connection) -> str:
    """Why a process failed: the error that it sent, or how it ended."""
    try:
        return str(errors.recv())
    except EOFError:  # it exited without sending an error
        code = child.exitcode
        assert code is not None
        if code < 0:
            return f"it was terminated by signal {-code}; run the same command again to continue."
        return f"it exited with code {code}; its own error is printed above."
