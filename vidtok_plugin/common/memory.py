"""The memory that this process may still take."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Memory in bytes that the system has available without swapping, within the limit of a container if there is one.

    Without Linux, the machine's physical memory; None where that is unknown, too.
    """
    available = _from_meminfo(meminfo)
    if available is None:
        return _physical()
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
    except (OSError, ValueError):  # no such files, or "max": no limit
        return available
    return min(available, max(0, limit - used))


def _from_meminfo(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
