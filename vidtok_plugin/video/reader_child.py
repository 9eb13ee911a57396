"""The main loop of a reader process, which answers calls until its parent exits."""

import contextlib
import importlib
import mmap
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vidtok_plugin.video import clip_reader  # noqa: F401  imported before the first call, whose time is limited
from vidtok_plugin.video.reading import ReaderName, prepare_reader


def serve(connection_file: int, memory_file: int, parent: int, reader: ReaderName) -> None:
    """Answers calls from a connection; uint8 arrays are returned in shared memory."""
    # Ctrl-C and SIGTERM reach all processes of a job. The parent exits when it is ready, and this process with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(ValueError):  # the first call raises it
        prepare_reader(reader)
    connection = Connection(connection_file)
    memory: mmap.mmap | None = None
    connection.send(("ready", None))
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            result = _resolve(function)(*arguments)
        except (ValueError, OSError) as error:
            connection.send(("error", error))
            continue
        if not isinstance(result, np.ndarray):
            connection.send(("value", result))
            continue
        assert result.dtype == np.uint8, "only frames are returned as arrays"
        if memory is None or len(memory) < result.nbytes:
            os.ftruncate(memory_file, result.nbytes)
            memory = mmap.mmap(memory_file, result.nbytes)
        np.frombuffer(memory, np.uint8, result.size).reshape(result.shape)[...] = result
        connection.send(("array", result.shape))


def _resolve(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _end_with(parent: int) -> None:
    """Exits when the parent does, even while a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
