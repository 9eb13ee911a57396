"""Memory reuse on a CPU: memory that a step frees stays in the process for the next step, as on a GPU.

By default, glibc allocates each block above 32 MiB from the system and returns it when it is freed. In a training step
of a tokenizer of the published width, a third of the time went into page faults on memory that the step before had
returned; in tokenizing with vidtok_tiny, a fifth.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# From <malloc.h>, for mallopt().
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
REUSE = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # no separate mapping for any block, no trimming
# glibc's defaults, with the thresholds that its dynamic adjustment reaches.
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20}

# A user who sets one of these environment variables overrides this module.
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keeps freed memory in the process for its next allocations, and returns it to the system at the end.

    Does nothing without glibc, or if one of `MALLOC_VARIABLES` or `GLIBC_TUNABLES` configures malloc already.
    """
    configured = any(name in os.environ for name in MALLOC_VARIABLES)
    if platform.libc_ver()[0] != "glibc" or configured or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        yield
        return
    glibc = ctypes.CDLL(None)
    for setting, value in REUSE.items():
        glibc.mallopt(setting, value)
    try:
        yield
    finally:
        for setting, value in DEFAULTS.items():
            glibc.mallopt(setting, value)
        glibc.malloc_trim(0)
