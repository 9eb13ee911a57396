"""`tokenize --engine ray` on Ray's own test cluster: the store is that of one process, whatever is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recordings import contents, tiny_adapter, write_episode

from vidtok_plugin import cli
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes

# Of Ray 2.60, as it is imported and as it ends.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SHARDS = 12
SMALL = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for frames in range(150, 150 + SHARDS):  # a third of a second of encoding each
        write_episode(root / f"{frames}.mp4", frames, size=64)
    return root


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the store that one process writes."""
    output = tmp_path_factory.mktemp("whole")
    write_store(tiny_adapter(), find_episodes(folder), output, episodes_per_shard=1)
    return contents(output)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one machine with one core, of its own processes on this machine; tests add others."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")
        patched.setenv("OMP_NUM_THREADS", "1")
        started = Cluster(initialize_head=True, head_node_args=SMALL)
        yield started
        started.shutdown()


@pytest.fixture
def arguments(folder: Path, tmp_path: Path) -> list[str]:
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model")
    command = ["tokenize", str(folder), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "store")]
    return [*command, "--episodes-per-shard", "1", "--engine", "ray"]


def shards_in(store: Path) -> int:
    return len(list(store.glob("tokens_*/train/shard_*")))


class At(threading.Thread):
    """Does something when a store has a number of shards."""

    def __init__(self, store: Path, shards: int, do: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.store, self.shards, self.do = store, shards, do
        self.found = 0  # shards that there were
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + SECONDS
        while shards_in(self.store) < self.shards:
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
        self.found = shards_in(self.store)
        self.do()


def test_a_machine_is_lost_half_way(
    cluster: Any, arguments: list[str], whole: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = cluster.add_node(**SMALL)
    both: list[bool] = []

    def kill() -> None:
        both.append(len(started(capfd)) == 2)
        cluster.remove_node(machine, allow_graceful=False)

    killing = At(tmp_path / "store", SHARDS // 2, kill)
    assert cli.main([*arguments, "--address", cluster.address]) == 0
    killing.join(SECONDS)
    said = printed(capfd)
    assert SHARDS // 2 <= killing.found < SHARDS and both == [True], said
    assert re.search(r"shard \d+: its worker was lost \(.*\); it is written again", said), said
    assert contents(tmp_path / "store") == whole


def test_a_worker_is_killed(
    cluster: Any, arguments: list[str], whole: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killing = At(tmp_path / "store", 2, lambda: os.kill(started(capfd)[-1], signal.SIGKILL))
    assert cli.main([*arguments, "--address", cluster.address]) == 0
    killing.join(SECONDS)
    said = printed(capfd)
    assert 2 <= killing.found < SHARDS
    assert re.search(r"shard \d+: its worker was lost \(.*\); it is written again", said), said
    assert len(started(capfd)) == 2, said
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_is_continued_by_another_engine(
    arguments: list[str], whole: dict[str, bytes], tmp_path: Path, signum: signal.Signals
) -> None:
    code = "import sys; from vidtok_plugin import cli; sys.exit(cli.main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", code, *arguments, "--processes", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    At(tmp_path / "store", 3, lambda: process.send_signal(signum)).join(SECONDS)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 143), said
    assert 3 <= shards_in(tmp_path / "store") < SHARDS
    arguments[-1] = "local"
    assert cli.main([*arguments, "--processes", "1"]) == 0
    assert contents(tmp_path / "store") == whole


SAID: dict[int, list[str]] = {}


def printed(capfd: pytest.CaptureFixture[str]) -> str:
    """All that a test has printed so far, in one line."""
    out, err = capfd.readouterr()
    text = SAID.setdefault(id(capfd), [])
    text.append(out + err)
    return " ".join("".join(text).split())


def started(capfd: pytest.CaptureFixture[str]) -> list[int]:
    """The processes of workers that have started."""
    return [int(process) for process in re.findall(r"a worker has started: process (\d+)", printed(capfd))]
