"""What a training step on a CPU frees is there for the next step, and goes back to the system after the run."""

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
from vidtok_plugin.training import freed_memory
from vidtok_plugin.training.freed_memory import SETTINGS, KeepFreedMemory

SIZE = 2**26
CODE = f"""
import resource
from vidtok_plugin.training.freed_memory import keeping_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def used():
    b"x" * {SIZE}

used()
before = resident()
with keeping_freed_memory():
    used()
    kept = resident() - before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    used()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(kept, faults, resident() - before)
"""


def measured(**settings: str) -> list[int]:
    env = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "GLIBC_TUNABLES")}
    done = subprocess.run([sys.executable, "-c", CODE], env=env | settings, check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_memory_is_kept_and_given_back() -> None:
    kept, faults, after = measured()
    assert kept > 0.9 * SIZE and faults < 100
    assert after < 0.1 * SIZE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize(
    "settings", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_a_users_own_settings_stay(settings: dict[str, str]) -> None:
    kept, faults, after = measured(**settings)
    assert kept < 0.1 * SIZE and faults > 1000
    assert after < 0.1 * SIZE


class Failing(BoringModel):
    def on_train_batch_end(self, *_: object) -> None:
        raise RuntimeError("lost")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    noted = []

    @contextmanager
    def noting() -> Iterator[None]:
        noted.append("begin")
        yield
        noted.append("end")

    monkeypatch.setattr(freed_memory, "keeping_freed_memory", noting)
    return noted


@pytest.mark.parametrize("model", [BoringModel, Failing])
@pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
def test_it_is_kept_while_a_run_trains(model: type[BoringModel], events: list[str]) -> None:
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


def test_another_devices_allocator_is_left_alone(events: list[str]) -> None:
    KeepFreedMemory().on_train_start(pl.Trainer(logger=False), BoringModel().to(torch.device("meta")))
    assert events == []


def test_every_run_has_it(tmp_path: Path) -> None:
    trainer = training.build_trainer(configure("tokenizer", settings("tokenizer", tmp_path, tmp_path)))
    assert any(isinstance(callback, KeepFreedMemory) for callback in trainer.callbacks)
