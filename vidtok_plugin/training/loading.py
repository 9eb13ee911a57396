"""Resumable loading: an order of samples that follows from seed and epoch, and goes on exactly where it stopped."""

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

POSITION = "epoch_and_samples"  # how the position is found inside the loader's own state


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Gives this rank's keys `(epoch, index)`, shuffled anew each epoch, without a last partial batch.

    `start_at(epoch, samples)` lets the next iteration begin in the middle: after `samples` samples, counted
    over all ranks, so that the position means the same for any number of ranks. It is a DistributedSampler so
    that Lightning tells it the epoch and puts none of its own in its place.
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
                f" {world_size} ranks, got {num_samples} samples; lower batch_size or raise the clips."
            )
        self.num_keys = num_samples
        self.batch_of_all = batch_size * world_size  # samples of all ranks
        self.size = num_samples - num_samples % self.batch_of_all
        self.epoch_end = self.size  # samples after which the trainer turns to the next epoch
        self.samples = 0  # where the next iteration starts

    def start_at(self, epoch: int, samples: int) -> None:
        """Sets where the next iteration starts; the end of an epoch is the start of the next."""
        self.epoch, self.samples = (epoch, samples) if samples < self.epoch_end else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch; the epoch that is being resumed keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.samples = epoch, 0

    def __len__(self) -> int:
        return self.size // self.num_replicas

    def __iter__(self) -> "_EpochIterator":
        return _EpochIterator(self)

    def order(self, epoch: int) -> list[int]:
        """The order of an epoch over all ranks."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_keys, generator=generator)[: self.size].tolist()


class _EpochIterator(Iterator[tuple[int, int]]):
    """Takes its start from the sampler with its first key, since loaders make iterators that they don't
    use."""

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
        place = self.samples + self.sampler.rank
        if place >= len(self.order):
            raise StopIteration
        self.samples += self.sampler.num_replicas
        return self.epoch, self.order[place]

    def state_dict(self) -> dict[str, Any]:
        """Called by the loader, which keeps it with the batch, so that prefetched batches don't count."""
        return {POSITION: (self.epoch, self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("ResumableLoader sets the position through EpochSampler.start_at.")


class ResumableLoader(StatefulDataLoader):
    """A StatefulDataLoader whose state is no more than the epoch and the number of samples consumed in it.

    Its own state has the workers' number and layout in it, resumes at the end of an epoch with nothing left,
    and is ignored by Lightning where an epoch just ended; this one may be loaded into a loader with other
    workers.
    """

    sampler: EpochSampler

    def state_dict(self) -> dict[str, Any]:
        position = _find(super().state_dict(), POSITION)
        if position is None:
            raise RuntimeError("ResumableLoader: torchdata's state doesn't hold the sampler's position any more.")
        return {"epoch": position[0], "samples": position[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({})
        self.sampler.start_at(state_dict["epoch"], state_dict["samples"])


class LoaderConfig(Protocol):
    """What a data module's config says of its training loader."""

    @property
    def batch_size(self) -> int: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def seed(self) -> int: ...


class ResumableDataModule(pl.LightningDataModule):
    """A data module whose checkpoint holds how far into which epoch training has come.

    Batches for a GPU come in page-locked memory, out of which it copies them while this process goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    def resumable_loader(
        self, dataset: Dataset[Any], cfg: LoaderConfig, collate_fn: Callable[[Any], Any] | None = None
    ) -> ResumableLoader:
        """The training loader, which goes on from a checkpoint's position if one was loaded."""
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
            sampler.epoch_end = batches * sampler.batch_of_all
        if self._position is not None:
            loader.load_state_dict(self._position)
            self._position = None
            if trainer and sampler.samples:
                _tell_batches(trainer, batches, (sampler.epoch_end - sampler.samples) // sampler.batch_of_all)
        self._train_loader = loader
        return loader

    def loader_settings(self, num_workers: int) -> dict[str, Any]:
        """Keywords of a DataLoader that suit the machine, for training and validation alike."""
        return {
            "num_workers": num_workers,
            "multiprocessing_context": worker_context(num_workers),
            "worker_init_fn": end_with_trainer,
            "pin_memory": self.pin_memory,
        }

    @property
    def pin_memory(self) -> bool:
        """Whether batches go to a GPU: to the trainer's, or without a trainer to the machine's."""
        device = self.trainer.strategy.root_device if self.trainer else default_device()
        return device.type == "cuda"

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning waits for the copy of what is no plain tensor."""
        if device.type == "cuda" and hasattr(batch, "to"):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict.get("train")


def _tell_batches(trainer: pl.Trainer, total: int, left: int) -> None:
    """Tells the Trainer how many batches of the epoch are left: it counts those before the resumption by the batches of
    then, and would end the epoch early where these were smaller."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    missing = total - left - progress.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress, name, getattr(progress, name) + missing)


def worker_context(num_workers: int) -> BaseContext | None:
    """How a loader starts its workers: from a clean process.

    A fork of this one would copy the locks that threads of decord and PyTorch hold at that moment, and nobody would
    ever release them: a worker hung so once in ten runs or so.
    """
    if num_workers == 0:
        return None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vidtok_plugin.video.clips"])
    if threading.current_thread() is threading.main_thread():
        # The server and its workers ignore SIGTERM, as they inherit it: sent to all of a job's processes, it would take
        # the loader from the run before the run has saved itself. They end with it.
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
    return context


def end_with_trainer(worker: int) -> None:
    """To be run in each worker at its start: it ends when the process that it loads for does, however that ends.

    A worker watches its parent, but under a fork server that is the server, which waits for the worker in its turn:
    after a kill -9 of the training both would stay forever, with all their memory.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # see `worker_context`; here for workers without a fork server
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _find(state: Any, key: str) -> Any:
    """The value of a key anywhere in nested dicts."""
    if not isinstance(state, dict):
        return None
    if key in state:
        return state[key]
    return next((found for value in state.values() if (found := _find(value, key)) is not None), None)
