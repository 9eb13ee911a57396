"""Loader workers: they start from a clean process, and end with the training, however that ends."""

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_dataloader

if sys.platform == "win32":
    from multiprocessing.context import SpawnContext as Context
    from multiprocessing.context import SpawnProcess as Process
else:
    import multiprocessing.forkserver
    from multiprocessing.context import ForkServerContext as Context
    from multiprocessing.context import ForkServerProcess as Process

PRELOADED = "vidtok_plugin.video.data"  # imported once, for all workers: with what it imports, each would take seconds
GRACE = 2.0  # seconds for workers to finish what they are doing before they are killed
_started: WeakSet[BaseProcess] = WeakSet()
_hiding = threading.Lock()


class WorkerProcess(Process):
    """A worker that does not run the main script again, unless it needs classes or functions of that script.

    Other libraries' workers import the script, so that one without `if __name__ == "__main__":` trains once more in
    each of them.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        _started.add(self)

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        try:
            with _hiding, _main_hidden():
                return Process._Popen(process_obj)
        except (AttributeError, pickle.PicklingError):  # it refers to the script
            return Process._Popen(process_obj)


class WorkerContext(Context):
    """The multiprocessing context of a data module's workers, which it can end."""

    Process = WorkerProcess

    def __init__(self) -> None:
        super().__init__()
        self.iterators: WeakSet[Any] = WeakSet()  # of loaders, which own the workers

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerContext, ()

    def end_workers(self) -> None:
        """Ends all workers within seconds: those that do not finish within `GRACE` are killed."""
        for iterator in list(self.iterators):
            workers: list[BaseProcess] = iterator._workers
            killing = threading.Timer(GRACE, _kill, [workers])
            killing.daemon = True
            killing.start()
            try:
                iterator._shutdown_workers()
            finally:
                killing.cancel()
                _kill(workers)
                for worker in workers:
                    worker.join()
        self.iterators.clear()


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose workers its `WorkerContext` can end, for any reference that still holds its iterator."""

    def _get_iterator(self) -> torch_dataloader._BaseDataLoaderIter:
        return tracked(self, super()._get_iterator())


def tracked(loader: DataLoader[Any], iterator: Any) -> Any:
    """The loader's new iterator, known to its WorkerContext, if it has one."""
    if isinstance(loader.multiprocessing_context, WorkerContext):
        loader.multiprocessing_context.iterators.add(iterator)
        atexit.unregister(_kill_all)
        atexit.register(_kill_all)  # before PyTorch's own function, which waits 5 s for each worker
    return iterator


def worker_context(num_workers: int) -> WorkerContext | None:
    """The multiprocessing context of loader workers: they start from a clean process.

    Forking this process would copy locks that threads of decord and PyTorch hold at that moment, and nothing would
    release them in the worker. About one run in ten hung for that reason.

    Raises:
        ValueError: this process is itself a worker, which imports the main script.
    """
    if num_workers == 0:
        return None
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ValueError(
            f"data.num_workers={num_workers}: the loader's workers need classes or functions of the main script and so "
            'import it; put its statements that train under `if __name__ == "__main__":`, or set num_workers=0.'
        )
    context = WorkerContext()
    if sys.platform == "win32":
        return context
    context.set_forkserver_preload([PRELOADED])
    if threading.current_thread() is threading.main_thread():
        # The fork server and its workers inherit that they ignore SIGTERM. Schedulers send it to all processes of a
        # job; workers that die would stop the run before it has saved a checkpoint. They exit with the run.
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
    return context


def exit_with_trainer(worker: int) -> None:
    """A `worker_init_fn`: the worker exits when the training process does, however that ends.

    PyTorch's workers watch their parent process. Under a fork server that is the server, which in turn waits for its
    workers: after a `kill -9` of the training process both would stay forever, with all their memory.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in `worker_context`, for workers without a fork server
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the training process ends its workers
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Makes a new process start without the main script. Pickling what is defined there fails meanwhile."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _kill_all() -> None:
    _kill([worker for worker in _started if worker.pid is not None])


# At exit, multiprocessing sends SIGTERM to its children and waits for them. Workers ignore SIGTERM: without this, a run
# that ends by an error, while its traceback still holds a loader, waits forever.
Finalize(None, _kill_all, exitpriority=100)
