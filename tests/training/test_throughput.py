"""Throughput logs samples per second and the fraction of time spent waiting for data."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from monitored_runs import LIGHTNING_NOISE, Metrics
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.module import Loss, TrainingModule
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from vidtok_plugin.training.throughput import Throughput


class Slow(TrainingModule):
    """A module whose steps and validation take a known time."""

    def __init__(self, step: float, validation: float) -> None:
        super().__init__(RunConfig(output=Path("unused")))
        self.layer, self.step_seconds, self.validation_seconds = nn.Linear(1, 1), step, validation

    def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
        time.sleep(self.step_seconds)
        yield Loss(name="model", value=self.layer(batch).square().mean())

    def tensors_of(self, batch: Tensor) -> dict[str, Tensor]:
        return {"x": batch}

    def batch_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["x"]

    def origins(self, batch: Tensor) -> list[str]:
        return ["here"] * len(batch)

    def optimizer_configs(self) -> list[OptimizerConfig]:
        return [OptimizerConfig()]

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self.parameters(), OptimizerConfig(), -1)

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        time.sleep(self.validation_seconds)


class SlowData:
    """Items that take a known time to load."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size, self.seconds = size, seconds

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return torch.ones(1)


def timed(module: Slow, data: float, *callbacks: pl.Callback) -> Metrics:
    loader: Any = DataLoader(SlowData(24, data), batch_size=2)  # type: ignore[arg-type]
    validation: Any = DataLoader(SlowData(1, 0.0))  # type: ignore[arg-type]
    metrics = Metrics()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, val_check_interval=2, log_every_n_steps=4, num_sanity_val_steps=0,
        callbacks=[Throughput(window=6), *callbacks, metrics],
    )  # fmt: skip
    profiler = trainer.profiler  # type: ignore[attr-defined]
    try:
        trainer.fit(module, loader, validation)
    finally:
        assert trainer.profiler is profiler  # type: ignore[attr-defined]
    return metrics


@LIGHTNING_NOISE
def test_throughput_includes_loading_but_not_validation() -> None:
    """The bounds are wide for busy machines. With validation, 2 clips would take at least 225 ms."""
    line = timed(Slow(0.005, 0.4), 0.01).lines[12]
    assert 2 / 0.2 < line["train/samples_per_second"] <= 2 / 0.025
    assert line["train/data_wait"] > 0.4


@LIGHTNING_NOISE
def test_a_fast_loader_causes_no_wait() -> None:
    assert timed(Slow(0.02, 0.0), 0.0).lines[12]["train/data_wait"] < 0.4


@LIGHTNING_NOISE
def test_the_first_batch_is_not_counted() -> None:
    class FirstIsSlow(Slow):
        def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
            time.sleep(1.0 if step == 0 else 0.0)
            yield from super().losses(batch, step)

    line = timed(FirstIsSlow(0.0, 0.0), 0.0).lines[4]  # three batches
    assert line["train/samples_per_second"] > 8


@LIGHTNING_NOISE
def test_the_trainers_profiler_is_restored_after_an_error() -> None:
    class Fails(Slow):
        def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        timed(Fails(0.0, 0.0), 0.0)
