"""On a CPU, memory that a training step frees is reused by the next, and returned to the system after the run."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from training_runs import configure, settings

from vidtok_plugin import training
from vidtok_plugin.common.freed_memory import MALLOC_VARIABLES
from vidtok_plugin.common.freed_memory import __file__ as SOURCE
from vidtok_plugin.training import freed_memory
from vidtok_plugin.training.freed_memory import KeepFreedMemory

SIZE = 2**26
# The file is run by its path: importing the package takes seconds.
CODE = f"""
import ctypes
import os
import resource
import runpy

for setting in os.environ.get("MALLOPT", "").split():
    ctypes.CDLL(None).mallopt(*map(int, setting.split("=")))
keeping_freed_memory = runpy.run_path({SOURCE!r})["keeping_freed_memory"]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def allocate():
    b"x" * {SIZE}

allocate()
before = resident()
with keeping_freed_memory():
    allocate()
    kept = resident() - before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with keeping_freed_memory():  # the end of an inner use ends nothing
        pass
    allocate()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(kept, faults, resident() - before)
"""


def measured(**settings: str) -> list[int]:
    """Bytes kept after an allocation, page faults of the next one, and bytes kept at the end."""
    env = {name: value for name, value in os.environ.items() if name not in (*MALLOC_VARIABLES, "GLIBC_TUNABLES")}
    done = subprocess.run([sys.executable, "-c", CODE], env=env | settings, check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_reused_and_returned_at_the_end() -> None:
    kept, faults, after = measured()
    assert kept > 0.9 * SIZE and faults < 100
    assert after < 0.1 * SIZE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("mallopt", "reused"), [("-3=65536", False), ("-4=0 -1=-1", True)])
def test_a_process_that_configured_malloc_keeps_its_settings(mallopt: str, reused: bool) -> None:
    """Ours replaced them, and glibc's defaults then replaced ours. -3, -4 and -1 are the thresholds and the number."""
    kept, faults, after = measured(MALLOPT=mallopt)
    assert abs(kept) < 0.1 * SIZE and abs(after) < 0.1 * SIZE  # as before
    assert faults < 100 if reused else faults > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    "settings", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_a_users_malloc_settings_take_precedence(settings: dict[str, str]) -> None:
    kept, faults, after = measured(**settings)
    assert kept < 0.1 * SIZE and faults > 1000
    assert after < 0.1 * SIZE


class Failing(BoringModel):
    def on_train_batch_end(self, *_: object) -> None:
        raise RuntimeError("lost")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recorded = []

    @contextmanager
    def recording() -> Iterator[None]:
        recorded.append("begin")
        yield
        recorded.append("end")

    monkeypatch.setattr(freed_memory, "keeping_freed_memory", recording)
    return recorded


@pytest.mark.parametrize("model", [BoringModel, Failing])
@pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
def test_it_applies_while_a_run_trains(model: type[BoringModel], events: list[str]) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", fast_dev_run=2, callbacks=[KeepFreedMemory()], **quiet)
    with pytest.raises(RuntimeError, match="lost") if model is Failing else nullcontext():
        trainer.fit(model())
    assert events == ["begin", "end"]


def test_other_devices_are_not_affected(events: list[str]) -> None:
    KeepFreedMemory().on_train_start(pl.Trainer(logger=False), BoringModel().to(torch.device("meta")))
    assert events == []


@pytest.mark.parametrize("keep", [True, False])
def test_every_run_has_the_callback_unless_it_is_switched_off(keep: bool, tmp_path: Path) -> None:
    overrides = settings("tokenizer", tmp_path, tmp_path, *([] if keep else ["keep_freed_memory=false"]))
    trainer = training.build_trainer(configure("tokenizer", overrides))
    assert any(isinstance(callback, KeepFreedMemory) for callback in trainer.callbacks) == keep
