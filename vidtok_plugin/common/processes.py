"""Splitting a command's work over processes without torch.distributed, started here or by a launcher."""

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
    """One of `world_size` processes."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # rank within its machine

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and self.local_rank >= 0):
            raise ValueError(
                f"Process: rank must be in 0..world_size - 1, and local_rank at least 0, got rank {self.rank}, "
                f"world_size {self.world_size} and local_rank {self.local_rank}."
            )

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.world_size}"


THE_ONLY_PROCESS = Process()


def launched_process(environment: Mapping[str, str] = os.environ) -> Process:
    """This process as a launcher such as torchrun describes it in RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        ValueError: only one of RANK and WORLD_SIZE is set, or they are not valid numbers.
    """
    values = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment}
    if "RANK" not in values and "WORLD_SIZE" not in values:
        return THE_ONLY_PROCESS
    try:
        rank, world_size = int(values["RANK"]), int(values["WORLD_SIZE"])
        return Process(rank=rank, world_size=world_size, local_rank=int(values.get("LOCAL_RANK", rank)))
    except (KeyError, ValueError):
        raise ValueError(
            "The environment must set RANK and WORLD_SIZE, with RANK in 0..WORLD_SIZE - 1, or neither, got "
            f"{', '.join(f'{name}={value}' for name, value in values.items())}; start the command with torchrun, or "
            "unset them."
        ) from None


def run_processes(run: Callable[..., object], world_size: int, *args: Any, show_traceback: bool = False) -> None:
    """Calls `run(process, *args)` in `world_size` new processes and waits; if one fails, the others are terminated.

    `run` must be importable in a new interpreter.

    Raises:
        ChildProcessError: one failed; the message includes its error.
    """
    context = multiprocessing.get_context("spawn")
    children: dict[int, tuple[BaseProcess, Process, Connection]] = {}  # by sentinel
    try:
        for rank in range(world_size):
            process = Process(rank=rank, world_size=world_size, local_rank=rank)
            receiver, sender = context.Pipe(duplex=False)
            arguments = (run, process, args, sender, show_traceback)
            child: BaseProcess = context.Process(target=_child, args=arguments, daemon=True)
            with _interrupts_blocked():
                child.start()
            sender.close()  # the child's copy closes when it exits
            children[child.sentinel] = child, process, receiver
        while children:
            for sentinel in wait(list(children)):
                assert isinstance(sentinel, int)
                child, process, receiver = children.pop(sentinel)
                child.join()
                if child.exitcode != 0:
                    raise ChildProcessError(f"{str(process).capitalize()} failed: {_reason(child, receiver)}")
    finally:
        for child, _, _ in children.values():
            child.terminate()
        for child, _, _ in children.values():
            child.join()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
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
    run: Callable[..., object], process: Process, args: tuple[Any, ...], errors: Connection, show_traceback: bool
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging()
    try:
        run(process, *args)
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        errors.send(sentence(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Exits when the parent does, so that a killed parent leaves no process behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _reason(child: BaseProcess, errors: Connection) -> str:
    try:
        return str(errors.recv())
    except EOFError:  # it exited without sending an error
        code = child.exitcode
        assert code is not None
        if code < 0:
            return f"it was terminated by signal {-code}; run the same command again to continue."
        return f"it exited with code {code}; its own error is printed above."
