"""Windows cover every episode, their order follows from seed and epoch, and resumed training continues exactly."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stores import write_episodes
from tensordict import TensorDict

from vidtok_plugin.store.reader import TokenStore
from world_model.data import TokenDataConfig, TokenDataModule, WindowDataset, token_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    write_episodes(root, "train", [6, 2, 1, 9])
    return write_episodes(root, "validation", [7, 2, 1])


def config(folder: Path, **changes: Any) -> TokenDataConfig:
    return TokenDataConfig(**{"store": str(folder), "window_steps": 4, "batch_size": 2, "seed": 3} | changes)


def seen(batches: Any) -> list[list[int]]:
    """What identifies a batch: each window's first code, valid steps and start."""
    return [
        [*batch["codes"][:, 0, 0, 0].tolist(), *batch["valid"].sum(1).tolist(), *batch["start"].tolist()]
        for batch in batches
    ]


def test_every_start_is_a_sample(folder: Path) -> None:
    windows = WindowDataset(TokenStore(folder, "train"), 4)
    # 3 windows of the episode with 6 steps, 1 padded of that with 2, none of that with 1, 6 of that with 9
    batch = windows.__getitems__(list(range(len(windows))))
    assert batch["start"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5]
    assert batch["codes"][:, 0, 0, 0].tolist() == [0, 1, 2, 1, 3, 4, 5, 6, 7, 8]
    assert batch["valid"].sum(1).tolist() == [4, 4, 4, 2, 4, 4, 4, 4, 4, 4]
    assert torch.equal(windows[3]["codes"], batch["codes"][3])


@pytest.mark.parametrize("length", [2, 3, 4, 20])
def test_validation_scores_every_step_but_an_episodes_first_once(folder: Path, length: int) -> None:
    store = TokenStore(folder, "validation")
    windows = WindowDataset(store, length, every=length - 1, partial=True)
    batch = windows.__getitems__(list(range(len(windows))))
    scored = []
    for row in range(len(windows)):
        valid = int(batch["valid"][row].sum())
        scored += [(int(batch["codes"][row, 0, 0, 0]), int(batch["start"][row]) + step) for step in range(1, valid)]
    steps = [step for _, step in scored]
    assert sorted(steps) == sorted([1, 2, 3, 4, 5, 6, 1])


def test_the_order_follows_from_seed_and_epoch(folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        data = TokenDataModule(config(folder, seed=seed))
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return seen(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


class Listener(pl.LightningModule):
    """Trains nothing and keeps its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[TensorDict] = []
        self.validated: list[TensorDict] = []

    def training_step(self, batch: TensorDict, _: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch: TensorDict, _: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, run: Path, steps: int, resume: Path | None = None, accelerator: str = "cpu") -> Listener:
    listener = Listener()
    trainer = pl.Trainer(
        accelerator=accelerator,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
        callbacks=[ModelCheckpoint(run, filename="last", every_n_train_steps=1)],
        log_every_n_steps=1,
        limit_val_batches=0.0,
    )
    trainer.fit(listener, TokenDataModule(config(folder)), ckpt_path=resume)
    return listener


@pytest.mark.filterwarnings(
    "ignore:The .*_dataloader.* does not have many workers", "ignore:Checkpoint directory .* exists"
)
@pytest.mark.parametrize("steps", [3, 5, 7])  # an epoch has 5 batches: inside it, at its end, in the next one
def test_resumed_training_continues_with_the_next_batch(folder: Path, tmp_path: Path, steps: int) -> None:
    whole = seen(fit(folder, tmp_path / "whole", 11).batches)
    fit(folder, tmp_path / "part", steps)
    resumed = fit(folder, tmp_path / "part", 11, resume=tmp_path / "part" / "last.ckpt")
    assert seen(resumed.batches) == whole[steps:]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
def test_windows_for_a_gpu_are_in_pinned_memory(folder: Path, tmp_path: Path) -> None:
    data = TokenDataModule(config(folder))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TensorDict) and all(value.is_pinned() for value in batch.values())
    assert data.transfer_batch_to_device(batch, torch.device("cuda"), 0)["codes"].is_cuda
    assert seen(fit(folder, tmp_path / "gpu", 7, accelerator="gpu").batches) == seen(fit(folder, tmp_path, 7).batches)


def test_limited_validation_windows_are_evenly_spaced(folder: Path) -> None:
    data = TokenDataModule(config(folder, window_steps=2, validation_windows=3, validation_batch_size=2))
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [2, 1]
    assert torch.cat([batch["start"] for batch in batches]).tolist() == [0, 3, 0]


def test_token_spec_describes_the_stores_tokens(folder: Path) -> None:
    spec = token_spec(TokenStore(folder).metadata)
    assert (spec.codebook_size, spec.height, spec.width, spec.temporal_factor) == (12, 2, 3, 2)
    assert spec.fsq_levels == (4, 3) and (spec.actions.kind, spec.actions.size) == ("discrete", 5)
    assert TokenDataModule(config(folder)).token_spec == spec


def test_too_short_episodes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episode of at least 2 latent steps"):
        WindowDataset(TokenStore(write_episodes(tmp_path, "train", [1, 1])), 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_steps": 1}, "window_steps must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"validation_windows": 0}, "validation_windows must be at least 1 or null, got 0"),
    ],
)
def test_bad_settings_are_named(folder: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(folder, **settings)
