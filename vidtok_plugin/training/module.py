"""TrainingModule: one batch of training, for tokenizer and world model alike."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from vidtok_plugin.common.distributed import mean_over_processes
from vidtok_plugin.training.config import RunConfig
from vidtok_plugin.training.non_finite import NonFiniteError, describe, save_dump
from vidtok_plugin.training.optimization import OptimizerConfig

logger = logging.getLogger(__name__)
Statistics = dict[str, Tensor]  # scalars by name, without gradients


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one optimizer minimises."""

    name: str  # of the optimizer, in the log
    value: Tensor | None  # None: there is nothing to learn in this batch
    statistics: Statistics = field(default_factory=dict)  # to be logged


class TrainingModule(pl.LightningModule):
    """Takes the optimizers' steps itself, so that a step is a batch for any number of them.

    A subclass gives the losses of a batch, one for each optimizer; the gradients of the first are taken before the
    second is computed. A batch may be split into parts, one after another. All randomness of a step follows from the
    run's seed, the step and the process, so that a resumed run has that of an unbroken one.
    """

    def __init__(self, cfg: RunConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run_cfg = cfg
        self.skipped_steps = 0

    # What a subclass tells

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Iterator[Loss]:
        """The losses of (a part of) a batch, in the order of the optimizers; step: batches before this one."""

    @abstractmethod
    def tensors_of(self, batch: Any) -> dict[str, Tensor]:
        """What `losses` needs of a batch, with the samples along the first axis."""

    @abstractmethod
    def batch_of(self, tensors: Mapping[str, Tensor]) -> Any:
        """A batch, or a part of one, of what `tensors_of` gave."""

    @abstractmethod
    def origins(self, batch: Any) -> list[str]:
        """Where each sample of a batch came from."""

    def sizes(self, batch: Any) -> dict[str, int]:
        """How much is in a batch, by what is counted; for the throughput."""
        return {"samples": self._count(batch)}

    def _count(self, batch: Any) -> int:
        """Samples in a batch."""
        return len(next(iter(self.tensors_of(batch).values())))

    @abstractmethod
    def optimizer_configs(self) -> list[OptimizerConfig]:
        """Of each optimizer."""

    def moving_buffers(self) -> list[Tensor]:
        """The buffers that `losses` changes, such as moving averages."""
        return []

    def fixed_settings(self) -> dict[str, Any]:
        """What a run that goes on must have as it began, by its config's key: what a checkpoint holds depends on it."""
        settings = {"ema_decay": self.run_cfg.ema_decay is not None}
        for index, (name, cfg) in enumerate(zip(self.optimizer_names(), self.optimizer_configs(), strict=True)):
            key = f"{name}_optimizer" if index else "optimizer"
            settings[f"{key}.muon_lr"] = cfg.muon_lr is not None
        return settings

    # A run

    def on_fit_start(self) -> None:
        self._settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in self.trainer.optimizers
        ]

    def on_train_start(self) -> None:
        """A resumed run trains by its config; a checkpoint's rates and decays would silently take its place."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for optimizer, scheduler, settings in zip(self.trainer.optimizers, schedulers, self._settings, strict=True):
            assert isinstance(scheduler, LambdaLR)
            scheduler.base_lrs = [own["initial_lr"] for own in settings]
            for group, own, rate in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
                group.update(own, lr=own["initial_lr"] * rate(scheduler.last_epoch))

    # A batch

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        step, optimizers = self.global_step, self._optimizers()
        self._seed(self.run_cfg.seed, step, self.global_rank)
        for optimizer in optimizers:
            optimizer.zero_grad()
        before = [buffer.clone() for buffer in self.moving_buffers()]
        parts = self._parts(batch)
        losses: Statistics = {}
        statistics: Statistics = {}
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            with nullcontext() if last else self._apart():
                part_losses, part_statistics = self._backward(part, step, optimizers, share=1 / len(parts))
            losses = {name: losses.get(name, 0) + value for name, value in part_losses.items()}
            statistics = {name: statistics.get(name, 0) + value for name, value in part_statistics.items()}
        norms = self._clip(optimizers, list(losses))
        if self._failed({**losses, **norms}):
            for buffer, value in zip(self.moving_buffers(), before, strict=True):
                buffer.copy_(value)  # else one such batch would spoil all after it
            self._report(batch, step, losses, norms)
            for optimizer in optimizers:
                optimizer.zero_grad()  # the step below then counts, and changes nothing
        self._step(optimizers)
        first = next(iter(losses))
        named = {"loss" if name == first else f"loss_{name}": value for name, value in losses.items()}
        self._log({**named, **statistics, **norms}, self._count(batch))
        return losses[first]

    def _parts(self, batch: Any) -> Sequence[Any]:
        count = self.run_cfg.accumulate
        if count == 1:
            return [batch]
        self.run_cfg.check_micro_batches(self._count(batch))
        chunks = {name: tensor.chunk(count) for name, tensor in self.tensors_of(batch).items()}
        return [self.batch_of({name: chunk[i] for name, chunk in chunks.items()}) for i in range(count)]

    def _backward(
        self, part: Any, step: int, optimizers: list[LightningOptimizer], share: float
    ) -> tuple[Statistics, Statistics]:
        """Adds a part's gradients to the rest; the losses by name, and the statistics."""
        losses: Statistics = {}
        statistics: Statistics = {}
        results = self.losses(part, step)
        for optimizer in optimizers:
            self.toggle_optimizer(optimizer)  # no gradients for the others' weights
            result = next(results)
            if result.value is not None:
                loss = result.value * share
                self.manual_backward(loss)
                losses[result.name] = loss.detach()
            statistics |= {name: value.detach() * share for name, value in result.statistics.items()}
            self.untoggle_optimizer(optimizer)
        return losses, statistics

    def _apart(self) -> AbstractContextManager[None]:
        """Leaves the processes' gradients apart until the last part's are there."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _clip(self, optimizers: list[LightningOptimizer], names: Sequence[str]) -> Statistics:
        """The norms of the optimizers' gradients, as they were before they were clipped."""
        norms: Statistics = {}
        for optimizer, cfg, name in zip(optimizers, self.optimizer_configs(), self.optimizer_names(), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if name not in names or not parameters:
                continue
            norm = get_total_norm([p.grad for p in parameters])
            if cfg.gradient_clip is not None:
                clip_grads_with_norm_(parameters, cfg.gradient_clip, norm)
            norms["grad_norm" if not norms else f"grad_norm_{name}"] = _whole(norm)
        return norms

    def optimizer_names(self) -> list[str]:
        """Their losses' names."""
        return ["model"]

    def _step(self, optimizers: list[LightningOptimizer]) -> None:
        optimizers[0].step()  # this one counts the batch
        for optimizer in optimizers[1:]:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[union-attr]

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers: Any = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _log(self, statistics: Statistics, batch_size: int) -> None:
        values = torch.stack([value.detach().float() for value in statistics.values()])
        with torch.no_grad():
            values = mean_over_processes(values)
        for name, value in zip(statistics, values, strict=True):
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "psnr"), batch_size=batch_size)
        if self.skipped_steps:
            self.log("train/skipped_steps", float(self.skipped_steps), batch_size=batch_size)

    @staticmethod
    def _seed(seed: int, step: int, rank: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))

    # A batch that fails

    def _failed(self, values: Statistics) -> bool:
        """Whether anything is infinite or not a number, in any process."""
        finite = torch.stack([value.detach().isfinite().all() for value in values.values()]).all()
        return self.trainer.strategy.reduce_boolean_decision(not bool(finite), all=False)

    def _report(self, batch: Any, step: int, losses: Statistics, norms: Statistics) -> None:
        """Stops the run, or counts the step to be skipped, as the config says."""
        failed = [f"loss_{name}" for name, value in losses.items() if not value.isfinite()]
        if not self.trainer.strategy.reduce_boolean_decision(bool(failed), all=False):
            failed = [name for name, value in norms.items() if not value.isfinite()]
        if self.run_cfg.non_finite == "skip":
            self.skipped_steps += 1
            if failed:
                logger.warning("skipped: %s.", describe(step, failed, self.origins(batch), None))
            return
        weights = {name: _whole(tensor).cpu() for name, tensor in self.state_dict().items()}  # by all processes
        if not failed:
            raise NonFiniteError(f"{type(self).__name__}: batch {step} failed in another process; see its message.")
        path = self.run_cfg.output / "non_finite" / f"step-{step:08d}-process-{self.global_rank}.pt"
        content = {
            "seed": self.run_cfg.seed,
            "step": step,
            "process": self.global_rank,
            "mixed": str(self.trainer.precision).startswith("bf16"),
            "batch": {name: tensor.cpu() for name, tensor in self.tensors_of(batch).items()},
            "origins": self.origins(batch),
            "values": {name: float(value) for name, value in {**losses, **norms}.items()},
            "state_dict": weights,
        }
        save_dump(path, content)
        raise NonFiniteError(
            f"{type(self).__name__}: {describe(step, failed, self.origins(batch), path)}; lower optimizer.lr, mend the "
            "data, or set non_finite=skip."
        )

    def reproduce(self, dump: str | Path) -> dict[str, float]:
        """Computes the losses and statistics of the batch in a dump again, with its weights."""
        content = torch.load(dump, map_location=self.device, weights_only=True)
        self.load_state_dict(content["state_dict"])
        self.train()
        self._seed(content["seed"], content["step"], content["process"])
        values: dict[str, float] = {}
        parts = self._parts(self.batch_of(content["batch"]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=content["mixed"]):
            for part in parts:
                for loss in self.losses(part, content["step"]):
                    own = {} if loss.value is None else {f"loss_{loss.name}": loss.value}
                    for name, value in {**own, **loss.statistics}.items():
                        values[name] = values.get(name, 0.0) + float(value.detach()) / len(parts)
        return values

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["fixed_settings"] = self.fixed_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        saved, ours = checkpoint.get("fixed_settings", {}), self.fixed_settings()
        for name, value in ours.items():
            if saved.get(name, value) != value:
                was, now = (_as_set(setting) for setting in (saved[name], value))
                raise ValueError(
                    f"{type(self).__name__}: {name} must be as in the run so far, {was}, got {now}; set it as it was, "
                    "or start anew in another output folder (pretrained=FOLDER goes on from its weights)."
                )


def _as_set(setting: Any) -> str:
    return {True: "set", False: "not set"}.get(setting, str(setting))


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in shares; all processes call it alike."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
