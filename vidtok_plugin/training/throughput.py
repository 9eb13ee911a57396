"""Throughput: samples per second, and the fraction of time spent waiting for data."""

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler

from vidtok_plugin.common.distributed import mean_over_processes, num_processes
from vidtok_plugin.training.log_steps import at_log_step
from vidtok_plugin.training.module import TrainingModule

NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"  # the Trainer's name for the wait for its loader


class Throughput(pl.Callback):
    """Logs the throughput of all processes and the fraction of time spent waiting for data, over `window` batches.

    The metrics are `train/NAME_per_second` for each name in the module's `sizes`, and `train/data_wait`. The time of a
    batch starts when the loader is asked for it and ends with its step; validation, checkpoints and logging are not
    counted. The first batch of a run or a resumption is left out: it starts workers and compiles. This callback does
    not synchronize with the device; TrainingModule does so once per batch, when it checks the loss.
    """

    def __init__(self, window: int = 100) -> None:
        self.batches: deque[_Batch] = deque(maxlen=window)
        self.clock: _LoaderClock | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, TrainingModule):
            raise TypeError(f"Throughput: the module must be a TrainingModule, got {type(module).__name__}.")
        self.batches.clear()
        self.first = True
        self.clock = _LoaderClock(trainer.profiler)  # type: ignore[attr-defined]
        trainer.profiler = self.clock  # type: ignore[attr-defined]

    def on_train_batch_start(self, *_: Any) -> None:
        assert self.clock is not None
        self.clock.batch_received()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        assert self.clock is not None and isinstance(module, TrainingModule)
        seconds, waited = self.clock.take()
        if not self.first:
            self.batches.append(_Batch(seconds=seconds, waited=waited, sizes=module.sizes(batch)))
        self.first = False
        if at_log_step(trainer) and self.batches:
            self._log(module)

    def _log(self, module: TrainingModule) -> None:
        sizes: Counter[str] = Counter()
        for batch in self.batches:
            sizes.update(batch.sizes)
        seconds, waited = sum(batch.seconds for batch in self.batches), sum(batch.waited for batch in self.batches)
        means = mean_over_processes(torch.tensor([seconds, waited, *sizes.values()], device=module.device)).tolist()
        rates = {
            f"train/{name}_per_second": size * num_processes() / means[0]
            for name, size in zip(sizes, means[2:], strict=True)
        }
        module.log_dict({**rates, "train/data_wait": means[1] / means[0]})

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.clock is not None:
            trainer.profiler = self.clock.profiler  # type: ignore[attr-defined]
            self.clock = None

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_train_end(trainer)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One process's timing of a batch."""

    seconds: float
    waited: float
    sizes: dict[str, int]


class _LoaderClock(Profiler):
    """Wraps the Trainer's profiler, the only public hook that is called around every wait for the loader."""

    def __init__(self, profiler: Profiler) -> None:
        super().__init__()
        self.profiler = profiler
        self.waits = 0
        self.begin: float | None = None  # of the current batch
        self.waited = 0.0  # seconds, for the current batch
        self.asked = 0.0

    def start(self, action_name: str) -> None:
        if action_name == NEXT_BATCH:
            self.asked = time.perf_counter()
            self.begin = self.asked if self.begin is None else self.begin
        self.profiler.start(action_name)

    def stop(self, action_name: str) -> None:
        self.profiler.stop(action_name)
        if action_name == NEXT_BATCH:
            self.waited += time.perf_counter() - self.asked
            self.waits += 1

    def batch_received(self) -> None:
        """Starts the time of a batch that was prefetched, such as the last of a loader without a length."""
        if not self.waits:
            raise RuntimeError("Throughput: Lightning's Trainer no longer profiles the wait for its loader.")
        self.begin = time.perf_counter() if self.begin is None else self.begin

    def take(self) -> tuple[float, float]:
        """Seconds that the batch took, and seconds that it was waited for; resets both."""
        assert self.begin is not None
        taken = time.perf_counter() - self.begin, self.waited
        self.begin, self.waited = None, 0.0
        return taken
