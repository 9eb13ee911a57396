"""Ctrl-C and SIGTERM: the first ends a command by its cleanup, a second ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM was received."""


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGINT and `Terminated` at SIGTERM.

    At a second signal the process exits without cleanup or traceback; files that it is writing still have temporary
    names. Signals that are ignored, or have another handler, stay as they are. Only the main thread can handle signals;
    in others this does nothing.
    """
    received = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)
        received = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(143)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) == default:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
