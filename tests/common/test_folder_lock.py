"""A folder has one writer, or several that share it; a lock ends with its process and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from disk_faults import files_limited_to

from vidtok_plugin.common import folder_lock
from vidtok_plugin.common.folder_lock import FolderLock

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("process 7 on elsewhere", file=file, flush=True)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.05)
    monkeypatch.setattr(folder_lock, "SHARED_PATIENCE", 0.05)


def assert_refused(lock: FolderLock) -> None:
    with pytest.raises(ValueError, match="is being written by"), lock:
        pytest.fail("there are two writers")


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with FolderLock(folder):
        assert_refused(FolderLock(folder))
        assert_refused(FolderLock(folder, shared=True))
        with FolderLock(folder, name=".other.lock"), FolderLock(tmp_path):
            pass
    with FolderLock(folder):
        pass
    assert list(tmp_path.iterdir()) == []  # neither files nor the folders that it made


def test_what_was_written_stays(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match="is being written by process 7 on elsewhere"),
            FolderLock(tmp_path),
        ):
            pytest.fail("there are two writers")
        holder.kill()
        holder.wait()
        with FolderLock(tmp_path):
            assert_refused(FolderLock(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_writers_that_share_a_folder_know_whether_they_are_alone(tmp_path: Path) -> None:
    with FolderLock(tmp_path, shared=True) as first:
        with FolderLock(tmp_path, shared=True) as second:
            assert_refused(FolderLock(tmp_path))
            with first.alone() as alone:
                assert not alone
            with second.alone() as alone:
                assert not alone  # looking has not given the first one's lock up
        with first.alone() as alone:
            assert alone
            assert_refused(FolderLock(tmp_path, shared=True))
        with FolderLock(tmp_path, shared=True):
            pass
        assert_refused(FolderLock(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"run/\.lock"), files_limited_to(0), FolderLock(tmp_path / "run"):
        pytest.fail("the disk is full")
    with FolderLock(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
