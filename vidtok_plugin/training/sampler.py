"""EpochSampler: an order of samples that depends on seed and epoch alone, and can start mid-epoch.

The order is computed as it is needed: a list of 40 million samples takes seconds and 1.5 GB at each start.
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler, SequentialSampler

from vidtok_plugin.training.permutation import permuted

POSITION = "epoch_and_samples"  # key of the position in an iterator's state
BLOCK = 1024  # indices computed at once


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
                f"EpochSampler: an epoch must have at least {batch_size * world_size} samples, {batch_size} for each"
                f" process, got {num_samples}; lower batch_size, or add data."
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

    def key_epoch(self, epoch: int) -> int:
        """The epoch whose keys an epoch yields."""
        return epoch

    def indices(self, epoch: int, positions: range) -> list[int]:
        """The sample indices at these positions of an epoch, 0 .. size - 1 over all ranks."""
        if not self.shuffle:
            return list(positions)
        indices: list[int] = permuted(positions, self.num_keys, [self.seed % 2**64, epoch]).tolist()
        return indices


class FixedSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]  # keys are pairs, not indices
    """Yields the keys of epoch 0 in every epoch, for Lightning's `overfit_batches`.

    It is a SequentialSampler so that Lightning does not replace it by one.
    """

    def key_epoch(self, epoch: int) -> int:
        return 0


class _EpochIterator(Iterator[tuple[int, int]]):
    """Reads the sampler's position at its first key, not earlier: loaders create iterators that they never use."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler
        self.epoch, self.samples = sampler.epoch, sampler.samples
        self.block: Iterator[int] | None = None  # the next indices

    def __iter__(self) -> "_EpochIterator":
        return self

    def __next__(self) -> tuple[int, int]:
        if self.block is None:
            self.epoch, self.samples = self.sampler.epoch, self.sampler.samples
            self.sampler.samples = 0
            self.block = iter(())
        index = next(self.block, None)
        if index is None:
            left = range(self.samples + self.sampler.rank, self.sampler.size, self.sampler.num_replicas)
            self.block = iter(self.sampler.indices(self.sampler.key_epoch(self.epoch), left[:BLOCK]))
            index = next(self.block)  # StopIteration at the end of the epoch
        self.samples += self.sampler.num_replicas
        return self.sampler.key_epoch(self.epoch), index

    def state_dict(self) -> dict[str, Any]:
        """Called by the loader, which stores the state with the batch, so that prefetched batches don't count."""
        return {POSITION: (self.epoch, self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("ResumableLoader sets the position through EpochSampler.start_at.")
