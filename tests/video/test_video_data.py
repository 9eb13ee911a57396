"""Training data depends only on seed and epoch, and resumes with the next batch."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from vidtok_plugin.training import loading
from vidtok_plugin.training.sampler import EpochSampler
from vidtok_plugin.video import VideoBatch, VideoDataConfig, VideoDataModule, write_video

BATCHES = 4  # per epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "b.mp4"):
        write_video(root / name, rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), fps=30)
    return root


def config(folder: Path, **changes: Any) -> VideoDataConfig:
    values: dict[str, Any] = {
        "train": (str(folder),),
        "validation": (str(folder),),
        "clip_length": 3,
        "height": 8,
        "width": 8,
        "batch_size": 2,
        "clips_per_epoch": 2 * BATCHES + 1,  # the last one is dropped
        "validation_clips": 3,
        "seed": 5,
    }
    return VideoDataConfig(**values | changes)


class Recorder(pl.LightningModule):
    """Learns nothing and records the epoch and the sum of each clip."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = not manual
        self.seen: list[tuple[int, list[float]]] = []

    def training_step(self, batch: VideoBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.video.double().flatten(1).sum(1).tolist()))
        loss = self.weight * batch.video.mean()
        if not self.automatic_optimization:
            self.optimizers().step()  # type: ignore[union-attr]
        return loss

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self.log("validation", batch.video.mean(), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    cfg: VideoDataConfig,
    output: Path,
    resume: Path | None = None,
    manual: bool = False,
    accelerator: str = "cpu",
    **trainer: Any,
) -> list[tuple[int, list[float]]]:
    module = Recorder(manual)
    checkpoints = ModelCheckpoint(dirpath=output, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    pl.Trainer(
        accelerator=accelerator,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[checkpoints],
        **trainer,
    ).fit(module, VideoDataModule(cfg), ckpt_path=resume, weights_only=True)
    return module.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
class TestResumption:
    @pytest.mark.parametrize(
        ("limit", "manual"),
        [
            ({"max_steps": 10}, False),
            ({"max_epochs": 3}, False),
            ({"max_epochs": 3, "val_check_interval": 3}, False),
            ({"max_steps": 10, "val_check_interval": 2}, True),
        ],
    )
    def test_a_resumed_run_continues_with_the_next_batch(
        self, folder: Path, tmp_path: Path, limit: dict[str, Any], manual: bool
    ) -> None:
        """StatefulDataLoader under Lightning skips the rest of an epoch, or repeats the order of the first epoch."""
        uninterrupted = fit(config(folder), tmp_path / "uninterrupted", manual=manual, **limit)
        assert len({clip for _, batch in uninterrupted for clip in batch}) > len(uninterrupted)  # they differ
        for step in (1, BATCHES, BATCHES + 2):
            resume = tmp_path / "uninterrupted" / f"step={step}.ckpt"
            assert fit(config(folder), tmp_path / f"{step}", resume, manual=manual, **limit) == uninterrupted[step:], (
                step
            )

    @pytest.mark.gpu
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_for_a_gpu_are_pinned_and_resume(
        self, folder: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pinned: list[bool] = []
        to = VideoBatch.to
        monkeypatch.setattr(VideoBatch, "to", lambda *a, **k: (pinned.append(a[0].frames.is_pinned()), to(*a, **k))[1])
        cfg, steps = config(folder, num_workers=workers), BATCHES + 3
        uninterrupted = fit(cfg, tmp_path / "uninterrupted", accelerator="gpu", max_steps=steps)
        assert len(pinned) >= steps and all(pinned)
        for step in (2, BATCHES, BATCHES + 1):
            resume = tmp_path / "uninterrupted" / f"step={step}.ckpt"
            resumed = fit(cfg, tmp_path / f"{step}", resume, accelerator="gpu", max_steps=steps)
            assert resumed == uninterrupted[step:]

    def test_prefetched_batches_are_neither_lost_nor_repeated(self, folder: Path, tmp_path: Path) -> None:
        """Two workers have prefetched up to four batches when a checkpoint is written."""
        steps = BATCHES + 3
        uninterrupted = fit(config(folder), tmp_path / "uninterrupted", max_steps=steps)
        assert (
            fit(config(folder, num_workers=2), tmp_path / "by_workers", max_steps=BATCHES + 1)
            == uninterrupted[: BATCHES + 1]
        )
        for step, workers in itertools.product((2, BATCHES, BATCHES + 1), (0, 2)):
            resume = tmp_path / "by_workers" / f"step={step}.ckpt"
            cfg = config(folder, num_workers=workers)
            assert fit(cfg, tmp_path / f"{step}_{workers}", resume, max_steps=steps) == uninterrupted[step:], (
                step,
                workers,
            )

    def test_an_epoch_limited_by_the_trainer_resumes(self, folder: Path, tmp_path: Path) -> None:
        limit = {"max_steps": 7, "limit_train_batches": 3}
        uninterrupted = fit(config(folder), tmp_path / "uninterrupted", **limit)
        assert [epoch for epoch, _ in uninterrupted] == [0, 0, 0, 1, 1, 1, 2]
        for step in (2, 3, 4):
            resume = tmp_path / "uninterrupted" / f"step={step}.ckpt"
            assert fit(config(folder), tmp_path / f"{step}", resume, **limit) == uninterrupted[step:]

    @pytest.mark.parametrize(("first", "then"), [(2, 4), (4, 2), (3, 4)])
    def test_batches_of_another_size_use_the_rest_of_the_epoch(
        self, folder: Path, tmp_path: Path, first: int, then: int
    ) -> None:
        """The Trainer counted earlier batches at their own size, and ended an epoch of larger ones early."""
        before = fit(config(folder, clips_per_epoch=24, batch_size=first), tmp_path / "first", max_steps=2)
        resume = tmp_path / "first" / "step=2.ckpt"
        after = fit(config(folder, clips_per_epoch=24, batch_size=then), tmp_path / "then", resume, max_epochs=2)
        uninterrupted = fit(config(folder, clips_per_epoch=24, batch_size=1), tmp_path / "uninterrupted", max_epochs=1)
        clips = [clip for epoch, batch in [*before, *after] if epoch == 0 for clip in batch]
        left_over = (24 - 2 * first) % then
        assert clips == [clip for _, batch in uninterrupted for clip in batch][: 24 - left_over]
        assert len([clip for epoch, batch in after if epoch == 1 for clip in batch]) == 24

    def test_a_checkpoint_holds_the_samples_consumed(self, folder: Path, tmp_path: Path) -> None:
        fit(config(folder), tmp_path, max_steps=BATCHES + 1)
        states = [
            torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["VideoDataModule"]["train"]
            for step in (1, BATCHES, BATCHES + 1)
        ]
        assert states == [{"epoch": 0, "samples": 2}, {"epoch": 0, "samples": 8}, {"epoch": 1, "samples": 2}]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_only_for_a_gpu(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = VideoDataModule(config(folder))
    data.setup()
    monkeypatch.setattr(loading, "default_device", lambda: torch.device(device))  # without a trainer
    pinning = [data.pin_memory, data.train_dataloader().pin_memory, data.val_dataloader().pin_memory]  # type: ignore[union-attr]
    assert pinning == [device == "cuda"] * 3
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)  # type: ignore[assignment]
    assert not data.pin_memory  # the machine has a GPU, but training does not use it


def test_copies_to_a_gpu_are_asynchronous(folder: Path) -> None:
    """Lightning uses `non_blocking` only for plain tensors."""
    calls: list[tuple[torch.device, bool]] = []

    class Batch:
        def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
            calls.append((device, non_blocking))
            return self

    data, batch = VideoDataModule(config(folder)), Batch()
    for name in ("cpu", "cuda"):
        assert data.transfer_batch_to_device(batch, torch.device(name), 0) is batch
    assert calls == [(torch.device("cpu"), False), (torch.device("cuda"), True)]


def test_each_epoch_has_its_own_order() -> None:
    sampler = EpochSampler(100, batch_size=4, seed=1)
    again = EpochSampler(100, batch_size=4, seed=1)
    again.set_epoch(2)
    every = range(100)
    assert sampler.indices(2, every) == again.indices(2, every) == [index for _, index in again]
    orders = [sampler.indices(1, every), sampler.indices(2, every)]
    assert orders[1] != orders[0] != EpochSampler(100, batch_size=4, seed=2).indices(1, every)
    assert sorted(sampler.indices(3, every)) == list(every)


@pytest.mark.parametrize("start", [0, 12])
def test_an_epoch_is_divided_among_ranks(start: int) -> None:
    keys = []
    for rank in range(3):
        sampler = EpochSampler(25, batch_size=2, seed=0, rank=rank, world_size=3)
        assert len(sampler) == 8
        sampler.start_at(1, start)
        keys.append(list(sampler))
    joined = [key for step in zip(*keys, strict=True) for key in step]
    assert joined == [(1, index) for index in sampler.indices(1, range(start, 24))]


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 samples, 8 for each process, got 15"):
        EpochSampler(15, batch_size=8, seed=0, world_size=2)


def test_invalid_data_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lists of folders"):
        config(folder, train=str(folder))
    with pytest.raises(ValueError, match="clip_length must be at least 1, got 0"):
        config(folder, clip_length=0)
    with pytest.raises(ValueError, match="train_weights must be one positive number for each of the 1"):
        config(folder, train_weights=(1.0, 2.0))
    with pytest.raises(FileNotFoundError, match="has no videos"):
        VideoDataModule(config(tmp_path)).setup()
    with pytest.raises(ValueError, match="a clip needs 31"):
        VideoDataModule(config(folder, clip_length=31)).setup()
