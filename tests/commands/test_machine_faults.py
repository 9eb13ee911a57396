"""Faults of the machine, drawn by a seed: each is one sentence that names the place, and a later try goes on.

Nothing that is half-written is taken as whole, and nothing earlier is lost. `pytest -s` prints the table of kinds.
"""

import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from disk_faults import PAGE, SmallDisk, files_limited_to
from training_runs import ROOT, logged, make_store, make_videos, run_here, settings, start
from writing_operations import NAMES, Operation, make_operations

from vidtok_plugin.common import atomic_files
from vidtok_plugin.common.commands import sentence
from vidtok_plugin.training.checkpoints import find_checkpoints, find_damage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("narrow_discriminators", "default_signals"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system, and limits the size of files"),
]
DRAWS = 4  # of a fault that has a size, for each operation
SECONDS = 60  # in which an operation ends
GOOD = {"one sentence", "finished"}


class Hang(Exception):
    """An operation did not end."""


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Operation]:
    return make_operations(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(tmp_path_factory.mktemp("disk") / "small")
    except PermissionError as error:
        pytest.skip(str(error))
    yield disk
    disk.remove()


@pytest.fixture(scope="module")
def table() -> Iterator[Counter[tuple[str, str]]]:
    """How many faults of each kind ended how."""
    counted: Counter[tuple[str, str]] = Counter()
    yield counted
    for (kind, result), count in sorted(counted.items()):
        print(f"{kind:30} {result:15} {count:4}")


@contextmanager
def ending_in(seconds: int) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def same_files(operation: Operation, output: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(output)): path for path in output.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if re.fullmatch(operation.same, name)}


def leftovers(output: Path) -> list[str]:
    return [path.name for path in output.rglob("*") if re.search(r"\.part(-|$)|\.lock$", path.name)]


def opened_files() -> list[str]:
    gc.collect()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.islink(link)]


def outcome(operation: Operation, output: Path) -> str:
    """How the later content is written under a fault: finished, one sentence, or a problem."""
    try:
        with ending_in(SECONDS):
            operation.run(output, 1)
    except (OSError, ValueError) as error:
        return "one sentence" if str(output) in sentence(error) else f"no place: {sentence(error)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "finished"


def problem_after(operation: Operation, output: Path, earlier: dict[str, bytes], later: dict[str, bytes]) -> str | None:
    """What a fault has left that it must not."""
    if left := leftovers(output):
        return f"left behind: {left}"
    if still := [path for path in opened_files() if path.startswith(f"{output}/") and "(deleted)" in path]:
        return f"open: {still}"
    found = same_files(operation, output)
    checkpoints = find_checkpoints(output / "checkpoints")
    if any(find_damage(path) for path in checkpoints) or ((output / "checkpoints").exists() and not checkpoints):
        return "damaged or lost checkpoints"
    if operation.adds:
        known = {name: {earlier.get(name), later[name]} for name in later}
        wrong = [name for name in earlier if name not in found]
        wrong += [name for name in found if found[name] not in known.get(name, ())]
        return f"lost or half-written: {wrong}" if wrong else None
    return None if found in (earlier, later) else "a mixture of earlier and later files"


def attempt(
    operation: Operation,
    output: Path,
    fault: Callable[[], AbstractContextManager[None]],
    later: dict[str, bytes],
    *,
    keeps: bool = True,
) -> str:
    """How an operation ends under a fault, after an earlier content was written; and whether a later try goes on."""
    operation.run(output, 0)
    earlier = same_files(operation, output)
    with fault():
        result = outcome(operation, output)
    if keeps and (problem := problem_after(operation, output, earlier, later)):
        result = f"{result}, {problem}"
    operation.run(output, 1)
    if same_files(operation, output) != later or leftovers(output):
        result = f"{result}, a later try does not go on"
    shutil.rmtree(output)
    return result


def whole(operation: Operation, folder: Path) -> tuple[dict[str, bytes], list[int], int, int]:
    """The later content, the sizes of its files, and the pages and files that it needs; `folder` is removed."""

    def sizes() -> list[int]:
        return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]

    def pages(sizes: list[int]) -> int:
        return sum(-(-size // PAGE) for size in sizes)

    operation.run(folder, 0)
    earlier = sizes() if operation.adds else []
    operation.run(folder, 1)
    result = same_files(operation, folder), sizes(), pages(sizes()) - pages(earlier), len(sizes()) - len(earlier)
    shutil.rmtree(folder)
    return result


@pytest.mark.parametrize("name", NAMES)
def test_disks_that_refuse(
    name: str,
    operations: dict[str, Operation],
    disk: SmallDisk,
    table: Counter[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full at any page, without inodes, files limited at any size, read-only, or gone while it is written."""
    if name == "recording":
        pytest.importorskip("ale_py")
    operation, output, rng = operations[name], disk.folder / name.replace(" ", "_"), np.random.default_rng(0)
    later, sizes, pages, count = whole(operation, output)
    results: list[tuple[str, str]] = []

    def check(kind: str, fault: Callable[[], AbstractContextManager[None]], *, keeps: bool = True) -> None:
        results.append((kind, attempt(operation, output, fault, later, keeps=keeps)))

    for number in [0, *rng.integers(0, pages, DRAWS - 1)]:
        check("full disk", lambda number=int(number): disk.full_after(number))
    for number in [0, *rng.integers(0, count, DRAWS - 1)]:
        check("no inodes", lambda number=int(number): disk.inodes(number))
    for size in [0, *rng.choice(sizes, 2) - 1, *rng.integers(1, max(sizes), DRAWS - 3)]:
        check("limited files", lambda size=int(size): files_limited_to(size))
    check("read-only", disk.read_only)
    for number in range(DRAWS - 1):
        check("vanished folder", lambda number=number: vanishing(output, number, monkeypatch), keeps=False)
    check("no temporary folder", lambda: without_temporary_folder(monkeypatch))
    table.update(results)
    assert {result for _, result in results} <= GOOD, [result for result in results if result[1] not in GOOD]
    refused = Counter(kind for kind, result in results if result == "one sentence")
    assert refused["read-only"] == 1 and refused["full disk"] >= 1 and refused["limited files"] >= 1
    assert ("no temporary folder", "finished") in results


@contextmanager
def vanishing(output: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder is removed when the file of this number is complete, before it gets its name."""
    calls = iter(range(1000))
    flush = atomic_files._flush

    def flush_or_remove(path: Path) -> None:
        flush(path)
        if next(calls) == number:
            shutil.rmtree(output)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_flush", flush_or_remove)
        yield


@contextmanager
def without_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/proc/missing")
        patch.setenv("TMPDIR", "/proc/missing")
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_written(
    name: str, operations: dict[str, Operation], tmp_path: Path, table: Counter[tuple[str, str]]
) -> None:
    """A file in the place of the folder, and a file system that takes no files (also from root)."""
    if name == "recording":
        pytest.importorskip("ale_py")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/output")):
        result = outcome(operations[name], place)
        table["no folder", result] += 1
        assert result == "one sentence"
    assert (tmp_path / "file").read_text() == ""


# Signals and second processes


def command(*arguments: str | Path, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts `vidtok-plugin` in a process group of its own."""
    # torch sets the variable where it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    return subprocess.Popen(
        [*wrapper, Path(sys.executable).with_name("vidtok-plugin"), *arguments],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def tokenizing(videos: Path, output: Path, *arguments: str) -> list[str | Path]:
    return ["tokenize", videos, "--model", "vidtok_tiny", "--output", output, "--episodes-per-shard", "1", *arguments]


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not found():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def signal_twice(process: subprocess.Popen[str], signum: signal.Signals, pause: float) -> str:
    """As a terminal or a scheduler does; -> what was printed."""
    for _ in range(2):
        os.killpg(process.pid, signum)
        time.sleep(pause)
    printed, _ = process.communicate(timeout=SECONDS)
    # A worker's thread of multiprocessing prints one of its own if the process that it serves is gone.
    assert "Traceback" not in printed or "resource_sharer" in printed
    return printed


@pytest.mark.parametrize("pause", [0.0, 0.2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_signalled_twice_ends_and_goes_on(
    tmp_path: Path, signum: signal.Signals, pause: float, table: Counter[tuple[str, str]]
) -> None:
    """The second signal may end it before it has saved, or while it exits."""
    torch.manual_seed(0)
    store, output = make_store(tmp_path / "tokens"), tmp_path / "run"
    limits = ["checkpoint_every=2", "data.num_workers=2", "trainer.check_val_every_n_epoch=1"]
    process = start("world_model", settings("world_model", store, output, "trainer.max_steps=10000", *limits), tmp_path)
    wait_for(lambda: logged(output), process)
    printed = signal_twice(process, signum, pause)
    assert process.returncode in {signal.SIGINT: (130, -2), signal.SIGTERM: (0, 143, -15)}[signum], printed
    assert not any(find_damage(path) for path in find_checkpoints(output / "checkpoints"))
    last = max(logged(output))
    run_here("world_model", settings("world_model", store, output, f"trainer.max_steps={last + 3}"))
    assert max(logged(output)) == last + 2 and not leftovers(output)
    table["two signals", "goes on"] += 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_tokenizing_that_is_signalled_twice_ends_and_goes_on(
    tmp_path: Path, signum: signal.Signals, table: Counter[tuple[str, str]]
) -> None:
    videos, output = make_videos(tmp_path / "videos", 8), tmp_path / "store"
    process = command(*tokenizing(videos, output, "--processes", "2"))
    wait_for(lambda: list(output.glob("tokens_*/train/shard_*")), process)
    printed = signal_twice(process, signum, 0.05)
    assert process.returncode in (130, 143, 0, -2, -15), printed
    process = command(*tokenizing(videos, output))
    assert "8 episodes" in process.communicate(timeout=300)[0]
    assert not leftovers(output)
    table["two signals", "goes on"] += 1


@pytest.mark.parametrize("kind", ["training", "tokenizing"])
def test_a_second_process_is_refused_until_the_first_has_ended(
    tmp_path: Path, kind: str, table: Counter[tuple[str, str]]
) -> None:
    torch.manual_seed(0)
    data, output = make_videos(tmp_path / "videos", 8), tmp_path / "output"
    store = make_store(tmp_path / "tokens") if kind == "training" else None

    def begin() -> subprocess.Popen[str]:
        if store is None:
            return command(*tokenizing(data, output, "--processes", "1"))
        return start("world_model", settings("world_model", store, output, "trainer.max_steps=100000"), tmp_path)

    first = begin()
    wait_for(lambda: list(output.glob("logs/*/*.csv" if store else "tokens_*")), first)
    os.kill(first.pid, signal.SIGSTOP)  # it would end before the second begins
    second = begin()
    printed, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 2 and f"error: {output} is being written by process {first.pid}" in printed
    first.kill()
    first.communicate(timeout=SECONDS)
    third = begin()
    if store is None:
        assert "8 episodes" in third.communicate(timeout=300)[0]
    else:
        before = max(logged(output), default=0)
        wait_for(lambda: max(logged(output), default=0) > before, third)
        third.kill()
        third.communicate(timeout=SECONDS)
    table["two processes", "one sentence"] += 1


def test_commands_work_without_a_temporary_folder(tmp_path: Path, table: Counter[tuple[str, str]]) -> None:
    """With processes of their own, which meet in sockets. Where neither /tmp nor the current folder takes files, torch
    cannot be imported.
    """
    try:
        subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a process cannot have mounts of its own here")
    data, output = make_videos(tmp_path / "videos", 3), tmp_path / "store"
    folders = [folder for folder in ("/tmp", "/var/tmp", "/usr/tmp") if Path(folder).is_dir()]
    if any(Path(sys.prefix).is_relative_to(folder) for folder in folders):
        pytest.skip("the commands are installed in a temporary folder, which the test hides")
    read_only = " && ".join(f"mount -t tmpfs -o ro none {folder}" for folder in folders)
    # The test's own folder stays at another place.
    place = Path("/mnt")
    script = f'mount --bind {tmp_path} {place} && {read_only} && cd {place} && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", script, "sh")
    process = command(*tokenizing(place / data.name, place / output.name, "--processes", "2"), wrapper=wrapper)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "3 episodes" in printed, printed
    table["no temporary folder", "finished"] += 1


def test_the_limit_of_file_sizes_is_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files_limited_to(100):
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 100
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
