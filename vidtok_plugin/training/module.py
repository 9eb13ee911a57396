"""TrainingModule: one training step with manual optimization, for the tokenizer and the world model."""

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
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from vidtok_plugin.common.distributed import mean_over_processes
from vidtok_plugin.training.config import RunConfig
from vidtok_plugin.training.non_finite import NonFiniteError, describe, save_dump
from vidtok_plugin.training.optimization import OptimizerConfig

logger = logging.getLogger(__name__)
Metrics = dict[str, Tensor]  # by name, without gradients


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss that one optimizer minimizes."""

    name: str  # of the optimizer, for the log
    value: Tensor | None  # None: the optimizer does not step on this batch
    statistics: Metrics = field(default_factory=dict)  # logged


class TrainingModule(pl.LightningModule):
    """Steps the optimizers manually, so that `global_step` counts batches for any number of optimizers.

    A subclass yields the losses of a batch, one per optimizer. Each loss is backpropagated before the next is computed.
    A batch may be split into micro-batches, whose gradients accumulate. The random numbers of a step depend on the
    run's seed, the step and the process alone, so a resumed run draws the same ones as an uninterrupted run.
    """

    def __init__(self, cfg: RunConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run_cfg = cfg
        self.skipped_steps = 0

    @property
    def mixed_bfloat16(self) -> bool:
        """Whether the Trainer's precision is bf16-mixed."""
        return self.trainer.precision == "bf16-mixed"

    # Defined by a subclass

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Iterator[Loss]:
        """Yields the losses of a batch or micro-batch, one per optimizer. step: batches before this one."""

    @abstractmethod
    def tensors_of(self, batch: Any) -> dict[str, Tensor]:
        """The tensors of a batch that `losses` needs, with samples along the first axis."""

    @abstractmethod
    def batch_of(self, tensors: Mapping[str, Tensor]) -> Any:
        """The batch or micro-batch that consists of these tensors, as given by `tensors_of`."""

    @abstractmethod
    def origins(self, batch: Any) -> list[str]:
        """The file, or position in a file, of each sample of a batch; for messages."""

    def trained_network(self) -> nn.Module:
        """The network that the run is to train; by default the whole module."""
        return self

    def sizes(self, batch: Any) -> dict[str, int]:
        """The number of samples, frames, tokens or the like in a batch, by name; for the throughput."""
        return {"samples": self._count(batch)}

    def _count(self, batch: Any) -> int:
        """The number of samples in a batch."""
        return len(next(iter(self.tensors_of(batch).values())))

    def scored_count(self, batch: Any) -> Tensor:
        """The number of terms, a scalar, that the losses of a batch or micro-batch are means over; samples by default.

        Micro-batches are weighted by it, so that their mean is that of the whole batch.
        """
        return torch.tensor(self._count(batch), device=self.device)

    @abstractmethod
    def optimizer_configs(self) -> list[OptimizerConfig]:
        """The config of each optimizer."""

    def optimizer_names(self) -> list[str]:
        """The names of the optimizers, which are those of their losses."""
        return ["model"]

    def updated_buffers(self) -> list[Tensor]:
        """The buffers that `losses` updates, such as moving averages."""
        return []

    def fixed_settings(self) -> dict[str, Any]:
        """The settings that a resumed run may not change, by config key: the content of checkpoints depends on them."""
        settings = {"ema_decay": self.run_cfg.ema_decay is not None}
        for index, (name, cfg) in enumerate(zip(self.optimizer_names(), self.optimizer_configs(), strict=True)):
            key = f"{name}_optimizer" if index else "optimizer"
            settings[f"{key}.muon_lr"] = cfg.muon_lr is not None
        return settings

    # Resumption

    def on_fit_start(self) -> None:
        self._settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in self.trainer.optimizers
        ]

    def on_train_start(self) -> None:
        """Applies the config's learning rates and weight decays; PyTorch has restored those of the checkpoint."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for optimizer, scheduler, settings in zip(self.trainer.optimizers, schedulers, self._settings, strict=True):
            assert isinstance(scheduler, LambdaLR)
            scheduler.base_lrs = [own["initial_lr"] for own in settings]
            for group, own, rate in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
                group.update(own, lr=own["initial_lr"] * rate(scheduler.last_epoch))

    # One step

    def check_trainable(self) -> None:
        """Raises a ValueError if the network has been frozen, which would train nothing without a word."""
        network = self.trained_network()
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(
                f"{type(self).__name__}: some parameters of the {type(network).__name__} must require gradients, but "
                "all are frozen (a TokenizerAdapter freezes the tokenizer that it is given); give the adapter a copy, "
                "or call requires_grad_(True)."
            )

    def training_step(self, batch: Any, batch_index: int) -> Tensor | None:
        self.check_trainable()
        step, optimizers = self.global_step, self._optimizers()
        self._seed(self.run_cfg.seed, step, self.global_rank)
        for optimizer in optimizers:
            optimizer.zero_grad()
        before = [buffer.clone() for buffer in self.updated_buffers()]
        micro_batches = self._micro_batches(batch)
        losses: Metrics = {}
        statistics: Metrics = {}
        for index, (micro_batch, weight) in enumerate(micro_batches):
            last = index + 1 == len(micro_batches)
            with nullcontext() if last else self._no_sync():
                more, more_statistics = self._backward(micro_batch, step, optimizers, weight)
            losses = {name: losses.get(name, 0) + value for name, value in more.items()}
            statistics = {name: statistics.get(name, 0) + value for name, value in more_statistics.items()}
        norms = self._clip(optimizers, list(losses))
        if not self._all_finite({**losses, **norms}):
            for buffer, value in zip(self.updated_buffers(), before, strict=True):
                buffer.copy_(value)  # else this batch would spoil all later ones
            self._stop_or_skip(batch, step, losses, norms)
            for optimizer in optimizers:
                optimizer.zero_grad()  # the step below then counts the batch and changes no weight
        self._step(optimizers)
        first = self.optimizer_names()[0]
        named = {"loss" if name == first else f"loss_{name}": value for name, value in losses.items()}
        self._log({**named, **statistics, **norms}, self._count(batch))
        return losses.get(first)

    def _micro_batches(self, batch: Any) -> list[tuple[Any, Tensor | float]]:
        """The micro-batches of a batch, and the weight of each in the mean over the batch."""
        count = self.run_cfg.accumulate
        if count == 1:
            return [(batch, 1.0)]
        self.run_cfg.check_micro_batches(self._count(batch))
        chunks = {name: tensor.chunk(count) for name, tensor in self.tensors_of(batch).items()}
        micro_batches = [self.batch_of({name: chunk[i] for name, chunk in chunks.items()}) for i in range(count)]
        with torch.no_grad():  # losses are means over all processes
            scored = mean_over_processes(torch.stack([self.scored_count(part).float() for part in micro_batches]))
        return list(zip(micro_batches, scored / scored.sum(), strict=True))

    def _backward(
        self, micro_batch: Any, step: int, optimizers: list[LightningOptimizer], weight: Tensor | float
    ) -> tuple[Metrics, Metrics]:
        """Accumulates the gradients of a micro-batch; returns its weighted losses by name, and its statistics."""
        losses: Metrics = {}
        statistics: Metrics = {}
        results = self.losses(micro_batch, step)
        for optimizer in optimizers:
            self.toggle_optimizer(optimizer)  # no gradients for the weights of the others
            result = next(results)
            if result.value is not None:
                loss = result.value * weight
                self.manual_backward(loss)
                losses[result.name] = loss.detach()
            statistics |= {name: value.detach() * weight for name, value in result.statistics.items()}
            self.untoggle_optimizer(optimizer)
        return losses, statistics

    def _no_sync(self) -> AbstractContextManager[None]:
        """Defers the reduction of gradients over the processes to the last micro-batch."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _clip(self, optimizers: list[LightningOptimizer], names: Sequence[str]) -> Metrics:
        """Clips each optimizer's gradients; returns their norms before clipping."""
        norms: Metrics = {}
        of = zip(optimizers, self.optimizer_configs(), self.optimizer_names(), strict=True)
        for index, (optimizer, cfg, name) in enumerate(of):
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if name not in names or not parameters:
                continue
            norm = get_total_norm([p.grad for p in parameters])
            if cfg.gradient_clip is not None:
                clip_grads_with_norm_(parameters, cfg.gradient_clip, norm)
            norms[f"grad_norm_{name}" if index else "grad_norm"] = _full_tensor(norm)
        return norms

    def _step(self, optimizers: list[LightningOptimizer]) -> None:
        optimizers[0].step()  # increments global_step; the others must not
        for optimizer in optimizers[1:]:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None)
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[union-attr]

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers: Any = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _log(self, statistics: Metrics, batch_size: int) -> None:
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

    # NaN and infinite values

    def _all_finite(self, values: Metrics) -> bool:
        """Whether all values are finite in all processes."""
        each = [value.detach().isfinite().all() for value in values.values()]
        finite = not each or bool(torch.stack(each).all())
        return self.trainer.strategy.reduce_boolean_decision(finite, all=True)

    def _stop_or_skip(self, batch: Any, step: int, losses: Metrics, norms: Metrics) -> None:
        """Stops the run with a dump of the batch, or counts a skipped step, as `non_finite` says."""
        failed = [f"loss_{name}" for name, value in losses.items() if not value.isfinite()]
        if not self.trainer.strategy.reduce_boolean_decision(bool(failed), all=False):
            failed = [name for name, value in norms.items() if not value.isfinite()]
        if self.run_cfg.non_finite == "skip":
            self.skipped_steps += 1
            if failed:
                logger.warning("Skipped a step: %s.", describe(step, failed, self.origins(batch), None))
            return
        weights = {name: _full_tensor(tensor).cpu() for name, tensor in self.state_dict().items()}  # in all processes
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
            f"{type(self).__name__}: {describe(step, failed, self.origins(batch), path)}; lower optimizer.lr, fix the "
            "data, or set non_finite=skip."
        )

    def reproduce(self, dump: str | Path) -> dict[str, float]:
        """Recomputes the losses and statistics of a dumped batch, with the dumped weights and random numbers."""
        content = torch.load(dump, map_location=self.device, weights_only=True)
        self.load_state_dict(content["state_dict"])
        self.train()
        self._seed(content["seed"], content["step"], content["process"])
        values: dict[str, float] = {}
        micro_batches = self._micro_batches(self.batch_of(content["batch"]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=content["mixed"]):
            for micro_batch, weight in micro_batches:
                for loss in self.losses(micro_batch, content["step"]):
                    own = {} if loss.value is None else {f"loss_{loss.name}": loss.value}
                    for name, value in {**own, **loss.statistics}.items():
                        values[name] = values.get(name, 0.0) + float(value.detach() * weight)
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
                was, now = (_describe(setting) for setting in (saved[name], value))
                raise ValueError(
                    f"{type(self).__name__}: {name} must be as in the run so far, {was}, got {now}; restore it, or "
                    "start a new run in another output folder (pretrained=FOLDER continues from these weights)."
                )


def _describe(setting: Any) -> str:
    return {True: "set", False: "not set"}.get(setting, str(setting))


def _full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a tensor that may be sharded; a collective call in all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
