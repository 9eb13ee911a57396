"""Resumable loading: a data module whose training loader resumes exactly where it stopped."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from vidtok_plugin.common.devices import default_device
from vidtok_plugin.training.sampler import POSITION, EpochSampler, FixedSampler
from vidtok_plugin.training.workers import WorkerContext, exit_with_trainer, tracked, worker_context


class ResumableLoader(StatefulDataLoader):
    """A StatefulDataLoader whose state is only the epoch and the number of samples consumed in it.

    Such a state loads into a loader with any number of workers. torchdata's own state depends on the workers, resumes
    an epoch that has ended with nothing left to load, and is ignored by Lightning right after an epoch.
    """

    sampler: EpochSampler
    _iterator: Any
    _state_at_end: dict[str, Any] | None = None  # when the workers were ended

    def _get_iterator(self) -> Any:
        self._state_at_end = None
        return tracked(self, super()._get_iterator())

    def end_workers(self) -> None:
        """Ends the workers, if there are any. The state stays; the next iteration starts new workers."""
        if self._iterator is not None and isinstance(self.multiprocessing_context, WorkerContext):
            self._state_at_end = self.state_dict()
            self.multiprocessing_context.end_workers()
            self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        if self._state_at_end is not None:
            return self._state_at_end
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

    Batches for a GPU are in pinned memory, so that copies to it are asynchronous. The loaders' workers end with
    the Trainer's call, also with one that fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self._contexts: list[WorkerContext] = []  # of all loaders
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    def resumable_loader(
        self, dataset: Dataset[Any], cfg: LoaderConfig, collate_fn: Callable[[Any], Any] | None = None
    ) -> ResumableLoader:
        """The training loader; it resumes at the position of the checkpoint that was loaded, if any."""
        trainer = self.trainer
        if trainer and trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            raise ValueError(
                "trainer.reload_dataloaders_every_n_epochs must be 0, got "
                f"{trainer.reload_dataloaders_every_n_epochs}: a new loader would start from the first epoch's order, "  # type: ignore[attr-defined]
                "while this one draws a new order in each epoch itself; leave it out."
            )
        sampler = (FixedSampler if trainer and trainer.overfit_batches else EpochSampler)(  # type: ignore[attr-defined]
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
        context = worker_context(num_workers)
        if context is not None:
            self._contexts.append(context)
        return {
            "num_workers": num_workers,
            "multiprocessing_context": context,
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

    def end_workers(self) -> None:
        """Ends the workers of all loaders, within seconds."""
        if self._train_loader is not None:
            self._train_loader.end_workers()
        for context in self._contexts:
            context.end_workers()

    def teardown(self, stage: str) -> None:
        self.end_workers()

    def on_exception(self, exception: BaseException) -> None:
        self.end_workers()

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


def _find(state: Any, key: str) -> Any:
    """The value of a key anywhere in nested dicts; None if it is not there."""
    if not isinstance(state, dict):
        return None
    if key in state:
        return state[key]
    return next((found for value in state.values() if (found := _find(value, key)) is not None), None)
