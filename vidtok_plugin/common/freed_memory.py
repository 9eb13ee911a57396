"""Memory reuse on a CPU: memory that a step frees stays in the process for the next step, as on a GPU.

By default, glibc allocates each block above 32 MiB from the system and returns it when it is freed. In a training step
of a tokenizer of the published width, a third of the time went into page faults on memory that the step before had
returned; in tokenizing with vidtok_tiny, a fifth.
"""

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

# From <malloc.h>, for mallopt().
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
REUSE = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # no separate mapping for any block, no trimming
# glibc cannot report its settings. These are its defaults, with the thresholds that its dynamic adjustment reaches.
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20}

# A user who sets one of these environment variables overrides this module.
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


# Blocks of these sizes are inside and outside the heap in all the states that glibc reaches by itself.
INSIDE, OUTSIDE = 100_000, 2**30 + 2000
MANY = 16  # free room in the heap may hold a first few blocks, wherever larger ones would go


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keeps freed memory in the process for its next allocations, and returns it to the system at the end.

    Nested and concurrent uses end with the last. Does nothing without glibc, or if malloc is configured already: by
    one of `MALLOC_VARIABLES`, by `GLIBC_TUNABLES`, or by a call of mallopt() that changed where large blocks go.
    (Another call, such as one that changed the trim threshold alone, cannot be seen and would be undone.)
    """
    configured = any(name in os.environ for name in MALLOC_VARIABLES)
    if platform.libc_ver()[0] != "glibc" or configured or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        yield
        return
    ours = _MALLOC.keep()
    try:
        yield
    finally:
        if ours:
            _MALLOC.release()


class _Malloc:
    """glibc's settings, changed by the first user and restored after the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.changed = False  # by us, ever

    def keep(self) -> bool:
        """Changes the settings, unless someone else has."""
        glibc = ctypes.CDLL(None)
        with self.lock:
            if not self.changed and (_has_own_mapping(glibc, INSIDE, MANY) or not _has_own_mapping(glibc, OUTSIDE)):
                logger.info("Freed memory is not kept: the process has configured malloc itself.")
                return False
            if not self.users:
                for setting, value in REUSE.items():
                    glibc.mallopt(setting, value)
            self.users += 1
            self.changed = True
            return True

    def release(self) -> None:
        glibc = ctypes.CDLL(None)
        with self.lock:
            self.users -= 1
            if not self.users:
                for setting, value in DEFAULTS.items():
                    glibc.mallopt(setting, value)
                glibc.malloc_trim(0)


def _has_own_mapping(glibc: ctypes.CDLL, size: int, count: int = 1) -> bool:
    """Whether malloc allocates one of `count` blocks of `size` bytes apart from the heap, in whole pages."""
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.malloc_usable_size.restype, glibc.malloc_usable_size.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    glibc.free.argtypes = [ctypes.c_void_p]
    blocks = [glibc.malloc(size) for _ in range(count)]
    unused = [glibc.malloc_usable_size(block) - size for block in blocks if block]
    for block in blocks:
        glibc.free(block)
    # A block is too large for the process's limit only if nothing of that size comes from the heap.
    return len(unused) < count or any(int(room) > 64 for room in unused)


_MALLOC = _Malloc()
