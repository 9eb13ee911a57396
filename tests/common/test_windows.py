"""What users do works on a pretended Windows, which refuses what Windows does: see `tests/windows.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, TESTS

POSIX_SIGNALS = r"signal\.(SIGKILL|SIGALRM|SIGHUP|SIGUSR\d|SIGCHLD|SIGSTOP|SIGCONT)"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what is open")
def test_a_pretended_windows_records_tokenizes_trains_and_imagines(tmp_path: Path) -> None:
    command = [sys.executable, str(TESTS / "windows.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-4000:]
    assert done.stderr.count("Files are not locked on Windows") == 1


def test_no_signal_is_used_that_windows_lacks() -> None:
    for package in ("vidtok_plugin", "world_model"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(POSIX_SIGNALS, path.read_text(encoding="utf-8")), path
