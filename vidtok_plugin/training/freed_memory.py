"""Memory that a training step on a CPU frees stays with the process for the next step, as PyTorch does it on a GPU.

glibc takes every block of more than 32 MiB from the system and gives it back when it is freed: in a training step of a
tokenizer of the published width a third of the time went into pages that the step before had given back.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl

# Of <malloc.h>, for mallopt().
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # no block from the system by itself, nothing back to it
# glibc's own, with the thresholds that they grow to as blocks are freed.
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20}

SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
"""The environment variables by which a user decides instead."""


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keeps what this process frees for its next allocations, and gives it back to the system at the end.

    It does nothing without glibc, or where one of `SETTINGS`, or `GLIBC_TUNABLES`, says how its malloc should be.
    """
    decided = any(name in os.environ for name in SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or decided:
        yield
        return
    glibc = ctypes.CDLL(None)
    for setting, value in KEEPING.items():
        glibc.mallopt(setting, value)
    try:
        yield
    finally:
        for setting, value in USUAL.items():
            glibc.mallopt(setting, value)
        glibc.malloc_trim(0)


class KeepFreedMemory(pl.Callback):
    """`keeping_freed_memory` while a run trains on a CPU."""

    def __init__(self) -> None:
        self.keeping = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.device.type == "cpu":
            self.keeping.enter_context(keeping_freed_memory())

    def on_train_end(self, *_: Any) -> None:
        self.keeping.close()

    def on_exception(self, *_: Any) -> None:
        self.keeping.close()
