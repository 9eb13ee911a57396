"""A separate process for decoding, which can be terminated when a decoder hangs or crashes."""

import mmap
import os
import subprocess
import sys
import tempfile
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

START_SECONDS = 120.0  # for the process to start, not included in the timeout of a call

# Bypasses the packages' __init__ modules, since they import torch, which takes 3 s and 300 MB.
_BOOT = """
import sys, types
sys.path[:] = {path!r}
for name, folder in {packages!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from vidtok_plugin.video.reader_child import serve
serve({connection}, {memory}, {parent}, {reader!r})
"""


class ReaderStoppedError(Exception):
    """The process hung and was terminated, or crashed."""


class ReaderProcess:
    """A child process that executes function calls, one at a time, each within `timeout` seconds.

    It starts with the first call, and restarts with the next call after it was terminated. It ends with its parent, for
    example a loader's worker, even if that is killed. Arrays are returned through shared memory. (It is started by
    `subprocess`, since a loader's workers may not start children by `multiprocessing`.) The package of `reader`, if it
    has one of its own, is imported before the first call.

    Example:
        >>> with ReaderProcess(timeout=10) as process:
        ...     process.call("math:sqrt", 2.25)
        1.5
    """

    def __init__(self, timeout: float, reader: str = "auto") -> None:
        if sys.platform == "win32":
            raise ValueError(
                f"data.read_timeout must be null on Windows, got {timeout:g}: a decoder's process cannot be given the "
                "memory that it shares there; leave it out."
            )
        if not timeout > 0:
            raise ValueError(f"ReaderProcess: timeout must be above 0 s, got {timeout}.")
        self.timeout, self.reader = timeout, reader
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process; None if it is not running."""
        return None if self._child is None else self._child.pid

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls `function`, given as "module:name", in the process; also raises its ValueErrors and OSErrors.

        Raises:
            ReaderStoppedError: the call took longer than the timeout, or the process crashed.
        """
        if self._child is None or self._child.owner != os.getpid():  # after a fork it belongs to another process
            self._child = _Child(self.reader)
        answered = False
        try:
            kind, value = self._child.ask(function, arguments, self.timeout)
            answered = True
        finally:
            if not answered:  # a later call must not get this answer
                self.close()
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        """Terminates the process, if it is running."""
        if self._child is not None and self._child.owner == os.getpid():
            self._child.end()
        self._child = None

    def __enter__(self) -> "ReaderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout": self.timeout, "reader": self.reader, "_child": None}


class _Child:
    """The process, the connection to it, and the shared memory."""

    def __init__(self, reader: str) -> None:
        self.owner = os.getpid()
        self._connection, theirs = Pipe()
        self._memory_file = _memory_file()
        self._memory: mmap.mmap | None = None
        package = Path(__file__).parents[1]
        boot = _BOOT.format(
            path=sys.path,
            packages=[("vidtok_plugin", str(package)), ("vidtok_plugin.video", str(package / "video"))],
            connection=theirs.fileno(),
            memory=self._memory_file,
            parent=self.owner,
            reader=reader,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), self._memory_file)
        )
        theirs.close()
        self.pid = self._process.pid
        self.end = weakref.finalize(self, _end, self.owner, self._process, self._connection, self._memory_file)
        self._receive(START_SECONDS, "starting")

    def ask(self, function: str, arguments: tuple[Any, ...], timeout: float) -> tuple[str, Any]:
        """The kind of the answer ("error", "value" or "array") and the answer."""
        try:
            self._connection.send((function, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None
        kind, value = self._receive(timeout, "reading")
        return (kind, self._array(value)) if kind == "array" else (kind, value)

    def _receive(self, timeout: float, doing: str) -> tuple[str, Any]:
        try:
            if not self._connection.poll(timeout):
                raise ReaderStoppedError(f"{doing} took longer than {timeout:g} s")
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None

    def _ended(self) -> Exception:
        code = self._process.wait()
        if code < 0:
            return ReaderStoppedError(f"the decoder crashed with signal {-code}")
        return RuntimeError(f"The reader process exited with code {code}; its own error is printed above.")

    def _array(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._memory_file, os.fstat(self._memory_file).st_size)
        return np.frombuffer(self._memory, np.uint8, size).reshape(shape).copy()


def _memory_file() -> int:
    """The descriptor of an empty, unnamed file, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vidtok_plugin_frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(owner: int, process: "subprocess.Popen[bytes]", connection: Connection, memory_file: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.wait()
    connection.close()
    os.close(memory_file)
