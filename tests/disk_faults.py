"""Disks that refuse: files that may not grow, and a small file system that is full, has no inodes, or is read-only."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096  # bytes by which a tmpfs grows
LARGE = "size=1g,nr_inodes=100000"  # it cannot be limited later if it is unlimited at first


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class SmallDisk:
    """A file system in memory at `folder`, whose size and permissions change while it is in use; root may mount it.

    Raises:
        PermissionError: it cannot be mounted here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        if _mount("-t", "tmpfs", "-o", f"{LARGE},mode=700", "tmpfs", str(folder)):
            raise PermissionError(f"{folder}: a tmpfs cannot be mounted here.")

    @contextmanager
    def full_after(self, pages: int) -> Iterator[None]:
        """Only so many more pages can be written (ENOSPC)."""
        status = os.statvfs(self.folder)
        used = status.f_blocks - status.f_bfree
        with self._changed(f"size={max(used + pages, 1) * PAGE}", LARGE):
            yield

    @contextmanager
    def inodes(self, more: int) -> Iterator[None]:
        """Only so many more files and folders can be made (ENOSPC)."""
        status = os.statvfs(self.folder)
        with self._changed(f"nr_inodes={status.f_files - status.f_ffree + more}", LARGE):
            yield

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written (EROFS)."""
        with self._changed("ro", "rw"):
            yield

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @contextmanager
    def _changed(self, option: str, back: str) -> Iterator[None]:
        assert _mount("-o", f"remount,{option}", str(self.folder)) == 0
        try:
            yield
        finally:
            assert _mount("-o", f"remount,{back}", str(self.folder)) == 0


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode
