"""How fast a run trains, and how much of its time it waits for data."""

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

NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"  # what the Trainer calls the wait for its loader


class Throughput(pl.Callback):
    """Logs what is trained on a second, over all processes, and the share of the time that is spent waiting for data.

    `train/clips_per_second` and the like, by what the module's `sizes` counts, and `train/data_wait`, over the last
    `window` batches. A batch's time runs from the moment the loader is asked for it until its step is done: validation,
    checkpoints and the log are in no batch's time. The first batch of a run or a resumption, which starts workers and
    compiles, is left out. The device is not waited for; TrainingModule does so once a batch, when it looks at the loss.
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
        self.clock.batch_is_there()

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
    """One process's part of a batch."""

    seconds: float
    waited: float
    sizes: dict[str, int]


class _LoaderClock(Profiler):
    """Stands before the Trainer's profiler, which hears of every wait for the loader: no other public hook does."""

    def __init__(self, profiler: Profiler) -> None:
        super().__init__()
        self.profiler = profiler
        self.waits = 0
        self.begin: float | None = None  # of the batch
        self.waited = 0.0  # for the batch
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

    def batch_is_there(self) -> None:
        """A batch that was prefetched, as the last of a loader without length is, begins here."""
        if not self.waits:
            raise RuntimeError("Throughput: Lightning's Trainer doesn't tell its profiler of the loader any more.")
        self.begin = time.perf_counter() if self.begin is None else self.begin

    def take(self) -> tuple[float, float]:
        """Seconds of the batch that ends, and those that it was waited for."""
        assert self.begin is not None
        taken = time.perf_counter() - self.begin, self.waited
        self.begin, self.waited = None, 0.0
        return taken
