"""Loader workers: they start from a clean process, and exit with the training process."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from multiprocessing.context import BaseContext


def worker_context(num_workers: int) -> BaseContext | None:
    """The multiprocessing context of loader workers: they start from a clean process.

    Forking this process would copy locks that threads of decord and PyTorch hold at that moment, and nothing would
    release them in the worker. About one run in ten hung for that reason.
    """
    if num_workers == 0:
        return None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vidtok_plugin.video.clips"])
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
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
