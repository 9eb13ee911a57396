"""A run that fails ends: its loaders' workers end on every way out, within seconds, and leave no process behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from places import TESTS
from training_runs import fit_here, make_store, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_store(tmp_path_factory.mktemp("tokens"))


class Failing(pl.Callback):
    """Ends the run in its first validation, while workers of both loaders run."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.workers: list[Any] = []

    def on_validation_batch_end(self, *_: Any) -> None:
        self.workers = multiprocessing.active_children()
        if self.error is None:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise self.error


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("error", [RuntimeError("in validation"), SystemExit(3), None])
def test_workers_end_with_a_run_that_fails(store: Path, tmp_path: Path, error: BaseException | None) -> None:
    failing = Failing(error)
    workers = ["data.num_workers=1", "trainer.max_steps=8"]
    with pytest.raises(KeyboardInterrupt if error is None else type(error)) as raised:
        fit_here("world_model", settings("world_model", store, tmp_path, *workers), failing)
    assert len(failing.workers) == 2
    assert not any(worker.is_alive() for worker in failing.workers), raised  # whose traceback still holds the loaders


SCRIPT = """
import signal, sys
print("script", flush=True)
sys.path[:0] = [{tests!r}, {here!r}]
from test_run_endings import Failing
from training_runs import *

signal.alarm(300)
store, output, overrides = Path({store!r}), Path({output!r}), ["data.num_workers=1", "trainer.max_steps=8"]
cfg = configure("world_model", settings("world_model", store, output, *overrides))
data = TokenDataModule(cfg)
data.setup()
iterator = iter(data.train_dataloader())  # its workers are nobody's business
next(iterator)
fit_here("world_model", settings("world_model", store, output, *overrides), Failing(RuntimeError("in validation")))
"""


@pytest.mark.slow
def test_a_script_that_fails_prints_its_error_and_exits(store: Path, tmp_path: Path) -> None:
    """It waited forever for workers, which ignore SIGTERM; without a guard, each worker ran the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(tests=str(TESTS), here=str(Path(__file__).parent), store=str(store), output=str(tmp_path / "run"))
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    printed, errors = process.communicate(timeout=310)
    assert process.returncode == 1 and printed.count("script") == 1
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("RuntimeError: in validation")
    deadline = time.monotonic() + 10
    while group_exists(process.pid):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
