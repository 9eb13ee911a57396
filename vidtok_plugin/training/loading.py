"""Resumable loading: the sample order depends on seed and epoch alone, and resumes exactly where it stopped."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch.utils.data import Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from vidtok_plugin.common.devices import default_device

POSITION = "epoch_and_samples"  # key of the position in the state of torchdata's loader


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields this rank's keys `(epoch, index)`, reshuffled each epoch, without a last partial batch.

    `start_at(epoch, samples)` makes the next iteration start mid-epoch, after `samples` samples over all ranks. The
    position is therefore valid for any number of ranks. It is a DistributedSampler so that Lightning calls `set_epoch`
    and does not replace it by a sampler of its own.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        super().__init__(range(num_samples), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        if num_samples < batch_size * world_size:
            raise ValueError(
                f"EpochSampler: an epoch must have at least one batch of {batch_size} on each of"
                f" {world_size} ranks, got {num_samples} samples; lower batch_size or add samples."
            )
        self.num_keys = num_samples
        self.global_batch_size = batch_size * world_size
        self.size = num_samples - num_samples % self.global_batch_size
        self.epoch_end = self.size  # samples after which the trainer starts the next epoch
        self.samples = 0  # where the next iteration starts

    def start_at(self, epoch: int, samples: int) -> None:
        """Sets where the next iteration starts; the end of an epoch counts as the start of the next."""
        self.epoch, self.samples = (epoch, samples) if samples < self.epoch_end else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch. A resumed epoch keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.samples = epoch, 0

    def __len__(self) -> int:
        return self.size // self.num_replicas

    def __iter__(self) -> "_EpochIterator":
        return _EpochIterator(self)

    def order(self, epoch: int) -> list[int]:
        """The sample indices of an epoch, over all ranks."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_keys, generator=generator)[: self.size].tolist()


class _EpochIterator(Iterator[tuple[int, int]]):
    """Reads the sampler's position at its first key, not earlier: loaders create iterators that they never use."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler
        self.epoch, self.samples = sampler.epoch, sampler.samples
        self.order: list[int] | None = None

    def __iter__(self) -> "_EpochIterator":
        return self

    def __next__(self) -> tuple[int, int]:
        if self.order is None:
            self.epoch, self.samples = self.sampler.epoch, self.sampler.samples
            self.sampler.samples = 0
            self.order = self.sampler.order(self.epoch)
        position = self.samples + self.sampler.rank
        if position >= len(self.order):
            raise StopIteration
        self.samples += self.sampler.num_replicas
        return self.epoch, self.order[position]

    def state_dict(self) -> dict[str, Any]:
        """Called by the loader, which stores the state with the batch, so that prefetched batches don't count."""
        return {POSITION: (self.epoch, self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("ResumableLoader sets the position through EpochSampler.start_at.")


class ResumableLoader(StatefulDataLoader):
    """A StatefulDataLoader whose state is only the epoch and the number of samples consumed in it.

    Such a state loads into a loader with any number of workers. torchdata's own state depends on the workers, resumes
    an epoch that has ended with nothing left to load, and is ignored by Lightning right after an epoch.
    """

    sampler: EpochSampler

    def state_dict(self) -> dict[str, Any]:
        position = _find(super().state_dict(), POSITION)
        if position is None:
            raise RuntimeError("ResumableLoader: torchdata's state no longer holds the sampler's position.")
        return {"epoch": position[0], "samples": position[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({})
        self.sampler.start_at(state_dict["epoch"], state_dict["samples"])


class LoaderConfig(Protocol):
    """The settings of a training loader in a data module's config."""

    @property
    def batch_size(self) -> int: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def seed(self) -> int: ...


class ResumableDataModule(pl.LightningDataModule):
    """A data module whose checkpoints hold the epoch and the position in it.

    Batches for a GPU are in pinned memory, so that copies to it are asynchronous.
    """

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    def resumable_loader(
        self, dataset: Dataset[Any], cfg: LoaderConfig, collate_fn: Callable[[Any], Any] | None = None
    ) -> ResumableLoader:
        """The training loader; it resumes at the position of the checkpoint that was loaded, if any."""
        trainer = self.trainer
        sampler = EpochSampler(
            len(dataset),  # type: ignore[arg-type]
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata 0.11 under torch 2.13
            loader = ResumableLoader(
                dataset,
                batch_size=cfg.batch_size,
                sampler=sampler,
                **self.loader_settings(cfg.num_workers),
                persistent_workers=cfg.num_workers > 0,
                collate_fn=collate_fn,
                drop_last=True,
            )
        if trainer:
            limit = trainer.limit_train_batches
            batches = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
            sampler.epoch_end = batches * sampler.global_batch_size
        if self._position is not None:
            loader.load_state_dict(self._position)
            self._position = None
            if trainer and sampler.samples:
                _set_batches_left(trainer, batches, (sampler.epoch_end - sampler.samples) // sampler.global_batch_size)
        self._train_loader = loader
        return loader

    def loader_settings(self, num_workers: int) -> dict[str, Any]:
        """DataLoader keywords that suit the machine, for training and validation."""
        return {
            "num_workers": num_workers,
            "multiprocessing_context": worker_context(num_workers),
            "worker_init_fn": exit_with_trainer,
            "pin_memory": self.pin_memory,
        }

    @property
    def pin_memory(self) -> bool:
        """Whether batches go to a GPU: the trainer's, or the machine's default device without a trainer."""
        device = self.trainer.strategy.root_device if self.trainer else default_device()
        return device.type == "cuda"

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copies asynchronously; Lightning would wait for any batch that is not a plain tensor."""
        if device.type == "cuda" and hasattr(batch, "to"):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict.get("train")


def _set_batches_left(trainer: pl.Trainer, total: int, left: int) -> None:
    """Corrects the Trainer's batch count of a resumed epoch.

    The Trainer restores the count of the checkpoint. If the batches were smaller then, it would end the epoch early.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    missing = total - left - progress.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress, name, getattr(progress, name) + missing)


def worker_context(num_workers: int) -> BaseContext | None:
    """The multiprocessing context of loader workers: they start from a clean process.

    Forking this process would copy locks that threads of decord and PyTorch hold at that moment, and nothing would
    release them in the worker. About one run in ten hung for that reason.
    """
    if num_workers == 0:
        return None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vidtok_plugin.video.clips"])
    if threading.current_thread() is threading.main_thread():
        # The fork server and its workers inherit that they ignore SIGTERM. Schedulers send it to all processes of a
        # job; workers that die would stop the run before it has saved a checkpoint. They exit with the run.
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
    return context


def exit_with_trainer(worker: int) -> None:
    """A `worker_init_fn`: the worker exits when the training process does, however that ends.

    PyTorch's workers watch their parent process. Under a fork server that is the server, which in turn waits for its
    workers: after a `kill -9` of the training process both would stay forever, with all their memory.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in `worker_context`, for workers without a fork server
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _find(state: Any, key: str) -> Any:
    """The value of a key anywhere in nested dicts; None if it is not there."""
    if not isinstance(state, dict):
        return None
    if key in state:
        return state[key]
    return next((found for value in state.values() if (found := _find(value, key)) is not None), None)
