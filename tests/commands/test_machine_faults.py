"""Faults of the machine, drawn by a seed: each is one sentence that names the place, and a later try goes on.

Nothing that is half-written is taken as whole, and nothing earlier is lost. `pytest -s` prints the table of kinds.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from disk_faults import files_limited_to
from recordings import tiny_adapter, tiny_kl_adapter, write_folder
from training_runs import Kind, logged, make_store, make_videos, run_here, settings, start

from vidtok_plugin.common.commands import sentence
from vidtok_plugin.store.adapter import agree_on_statistics
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video
from vidtok_plugin.tokenizer.weights.conversion import convert
from vidtok_plugin.training.checkpoints import find_checkpoints, find_damage
from vidtok_plugin.video.episodes import find_episodes, find_videos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("narrow_discriminators"),
    pytest.mark.filterwarnings("ignore"),
]
FULL_DISKS = 8  # of each operation
EXACT = ("model/*.safetensors", "tokens_*/**/*", "adapter_*/**/*", "*.safetensors")  # the same to the byte in each run


@dataclass(frozen=True)
class Operation:
    """Something that writes an output folder."""

    name: str
    run: Callable[[Path], object]


def fit(kind: Kind, data: Path) -> Callable[[Path], None]:
    own = ["trainer.max_steps=4", "checkpoint_every=2", "trainer.check_val_every_n_epoch=100", "ema_decay=0.9"]
    loggers = "loggers=[csv, tensorboard]"
    return lambda output: run_here(kind, settings(kind, data, output, *own, loggers))


def tokenize_kl(episodes: Path, output: Path) -> None:
    adapter = tiny_kl_adapter()
    agree_on_statistics(adapter, find_videos(episodes), output, clips=2)
    write_store(adapter, find_videos(episodes), output, episodes_per_shard=1)


def operations(folder: Path) -> list[Operation]:
    torch.manual_seed(0)
    videos, store = make_videos(folder / "videos"), make_store(folder / "tokens")
    episodes = write_folder(folder / "episodes", {"a": 9, "b": 17})
    adapter = tiny_adapter()
    model = folder / "model"
    adapter.tokenizer.save_pretrained(model)
    return [
        Operation("training of a world model", fit("world_model", store)),
        Operation("training of a tokenizer", fit("tokenizer", videos)),
        Operation(
            "token store of codes",
            lambda output: write_store(tiny_adapter(), find_episodes(episodes), output, episodes_per_shard=1),
        ),
        Operation("token store of patches", lambda output: tokenize_kl(episodes, output)),
        Operation("adapter", adapter.save_pretrained),
        Operation("model for diffusers or published", lambda output: convert(model, output, to="published")),
        Operation("video", lambda output: reconstruct_video(adapter.tokenizer, videos / "0.mp4", output / "out.mp4")),
    ]


def exact_contents(output: Path) -> dict[str, bytes]:
    files = {path for pattern in EXACT for path in output.glob(pattern) if path.is_file()}
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def leftovers(output: Path) -> list[str]:
    return [path.name for path in output.rglob("*") if re.search(r"\.part(-|$)|\.lock$", path.name)]


def outcome(operation: Operation, output: Path, place: Path) -> str:
    """How an attempt ends that a fault was put into: finished, one sentence, or a problem."""
    try:
        operation.run(output)
    except (OSError, ValueError) as error:
        return "one sentence" if str(place) in sentence(error) else f"without the place: {sentence(error)}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    return "finished"


def test_a_disk_that_is_full_at_any_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table: Counter[tuple[str, str]] = Counter()
    for operation in operations(tmp_path):
        whole = tmp_path / "whole"
        operation.run(whole)
        expected = exact_contents(whole)
        sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
        limits = [0, *rng.choice(sizes, 3), *rng.integers(1, sizes[-1], FULL_DISKS - 4)]
        for number, limit in enumerate(int(limit) for limit in limits):
            output = tmp_path / f"output{number}"
            with files_limited_to(limit):
                result = outcome(operation, output, output)
            left = leftovers(output)
            damaged = [path for path in find_checkpoints(output / "checkpoints") if find_damage(path)]
            if left or damaged or (result == "finished" and exact_contents(output) != expected):
                result = f"wrong: {left} {damaged}"
            operation.run(output)
            if exact_contents(output) != expected or leftovers(output):
                result = "a later try does not go on"
            table[operation.name, result] += 1
            shutil.rmtree(output)
        shutil.rmtree(whole)
    report(table)
    assert sum(table.values()) >= 50
    assert {result for _, result in table} <= {"one sentence", "finished"}
    assert all(table[name, "one sentence"] >= 2 for name, _ in table)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the place of the folder, and a file system that takes no files (also from root)."""
    table: Counter[tuple[str, str]] = Counter()
    (tmp_path / "file").write_text("")
    for operation in operations(tmp_path):
        for place in (tmp_path / "file", Path("/proc/output")):
            table[operation.name, outcome(operation, place, place)] += 1
    report(table)
    assert {result for _, result in table} == {"one sentence"}
    assert (tmp_path / "file").read_text() == ""


def report(table: Counter[tuple[str, str]]) -> None:
    for (name, result), count in table.items():
        print(f"{name:35} {result:15} {count:3}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_signalled_twice_ends_and_goes_on(tmp_path: Path, signum: signal.Signals) -> None:
    torch.manual_seed(0)
    store, output = make_store(tmp_path / "tokens"), tmp_path / "run"
    limits = ["checkpoint_every=2", "data.num_workers=2", "trainer.check_val_every_n_epoch=1"]
    process = start("world_model", settings("world_model", store, output, "trainer.max_steps=10000", *limits), tmp_path)
    while not logged(output):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signum)  # as a terminal or a scheduler does
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=60)
    assert "Traceback" not in printed
    assert process.returncode == (130 if signum == signal.SIGINT else 0)
    assert "interrupted" in printed or "SIGTERM: saved after" in printed
    assert not any(find_damage(path) for path in find_checkpoints(output / "checkpoints"))
    last = max(logged(output))
    run_here("world_model", settings("world_model", store, output, f"trainer.max_steps={last + 3}"))
    assert max(logged(output)) == last + 2 and not leftovers(output)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_tokenizing_that_is_signalled_twice_ends_and_goes_on(tmp_path: Path, signum: signal.Signals) -> None:
    videos, output = make_videos(tmp_path / "videos", 8), tmp_path / "store"
    command = Path(sys.executable).with_name("vidtok-plugin")
    arguments = ["tokenize", videos, "--model", "vidtok_tiny", "--output", output, "--episodes-per-shard", "1"]
    process = subprocess.Popen(
        [command, *arguments, "--processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not list(output.glob("tokens_*/train/shard_*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signum)
        time.sleep(0.05)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode in (130, 143, 0) and "Traceback" not in printed, printed
    again = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=300)
    assert "8 episodes" in again.stdout, again.stderr
    assert not leftovers(output)


def test_the_limit_of_file_sizes_is_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files_limited_to(100):
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 100
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
