"""Each of Lightning's switches works, or is refused by name; so do other calls of its Trainer."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from training_runs import TOKENIZER, Kind, configure, fit_here, logged, make_store, make_videos, run_here, settings

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.training.checkpoints import find_checkpoints
from vidtok_plugin.video import VideoDataModule
from world_model import TokenDataModule, WorldModelModule, WorldModelRunConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start"),
]
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_store(tmp_path_factory.mktemp("tokens"))


class Batches(pl.Callback):
    """What the run trained on, by epoch, and after how many batches it validated."""

    def __init__(self) -> None:
        self.starts: dict[int, list[list[int]]] = {}
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        windows = (100 * batch["episode"] + batch["start"]).tolist()
        self.starts.setdefault(trainer.current_epoch, []).append(windows)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step)


def test_switches_for_limits_checks_and_profiling_work_together(store: Path, tmp_path: Path) -> None:
    """The store has 12 windows, so 6 batches of 2 in an epoch, of which 0.7 are 4."""
    batches = Batches()
    switches = [
        "trainer.max_steps=8",
        "trainer.limit_train_batches=0.7",
        "trainer.limit_val_batches=1",
        "trainer.val_check_interval=0.5",
        "trainer.num_sanity_val_steps=1",
        "trainer.detect_anomaly=true",
        "trainer.inference_mode=false",
        "trainer.profiler=simple",
        "trainer.max_time={hours: 1}",
    ]
    trainer = fit_here("world_model", settings("world_model", store, tmp_path, *switches), batches)
    assert [len(epoch) for epoch in batches.starts.values()] == [4, 4]
    assert batches.validated == [0, 2, 4, 6, 8]
    assert sorted(logged(tmp_path)) == list(range(8))
    assert "run_training_batch" in trainer.profiler.summary()  # type: ignore[attr-defined]


def test_a_time_limit_saves_the_state_it_stops_in(store: Path, tmp_path: Path) -> None:
    trainer = fit_here("world_model", settings("world_model", store, tmp_path, "trainer.max_time={microseconds: 1}"))
    (saved,) = find_checkpoints(tmp_path / "checkpoints")
    assert trainer.global_step >= 1 and saved.name == f"step-{trainer.global_step:08d}.ckpt"


def test_overfit_batches_trains_on_the_same_batches_in_every_epoch(store: Path, tmp_path: Path) -> None:
    """Lightning replaced the sampler, without which no checkpoint could be saved."""
    batches = Batches()
    switches = ["trainer.max_steps=4", "trainer.overfit_batches=2", "checkpoint_every=1"]
    fit_here("world_model", settings("world_model", store, tmp_path, *switches), batches)
    assert list(batches.starts) == [0, 1] and batches.starts[0] == batches.starts[1]
    assert batches.starts[0][0] != batches.starts[0][1]
    resumed = Batches()
    switches[0] = "trainer.max_steps=6"
    fit_here("world_model", settings("world_model", store, tmp_path, *switches), resumed)
    assert list(resumed.starts.values()) == [batches.starts[0]]


@pytest.mark.parametrize("kind", ["tokenizer", "world_model"])
@pytest.mark.usefixtures("narrow_discriminators")
def test_a_dry_run_leaves_nothing_behind(store: Path, tmp_path: Path, kind: Kind) -> None:
    """It left a checkpoint, from which the real run went on."""
    data = make_videos(tmp_path / "videos", 1) if kind == "tokenizer" else store
    output = tmp_path / "run"
    run_here(kind, settings(kind, data, output, "trainer.fast_dev_run=true", "loggers=[csv, tensorboard]"))
    assert not output.exists()


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ("trainer.limit_train_batches=0", "limit_train_batches must be above 0, got 0"),
        ("trainer.reload_dataloaders_every_n_epochs=1", "reload_dataloaders_every_n_epochs is set by the loader"),
    ],
)
def test_a_switch_that_would_train_on_nothing_or_the_wrong_batches_is_refused(switch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("world_model", settings("world_model", Path("store"), Path("run"), switch))


def test_reloading_is_refused_for_a_trainer_of_ones_own(store: Path, tmp_path: Path) -> None:
    cfg = configure("world_model", settings("world_model", store, tmp_path))
    assert isinstance(cfg, WorldModelRunConfig)
    trainer = pl.Trainer(max_steps=1, reload_dataloaders_every_n_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs must be 0, got 1"):
        trainer.fit(WorldModelModule(cfg), TokenDataModule(cfg))


def test_a_second_fit_continues_and_test_and_predict_are_refused_by_name(store: Path, tmp_path: Path) -> None:
    cfg = configure("world_model", settings("world_model", store, tmp_path, "data.num_workers=1"))
    assert isinstance(cfg, WorldModelRunConfig)
    module, data, batches = WorldModelModule(cfg), TokenDataModule(cfg), Batches()
    trainer = pl.Trainer(max_steps=4, max_epochs=-1, callbacks=[batches], log_every_n_steps=1, **QUIET)
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(module, data)
    assert trainer.global_step == 8
    first, second = ([window for batch in batches.starts[epoch] for window in batch] for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 8 and first != second
    for call, step in ((trainer.test, "test_step"), (trainer.predict, "predict")):
        with pytest.raises(MisconfigurationException, match=step):
            call(module, data)


def test_training_with_nothing_to_train_is_refused(store: Path, tmp_path: Path) -> None:
    """An adapter on the tokenizer that is trained freezes it; fit() ran to its end and trained nothing."""
    overrides = [*TOKENIZER, "objective.discriminator=none", f"data.train=[{tmp_path}]", f"output={tmp_path}"]
    cfg = configure("tokenizer", overrides)
    assert isinstance(cfg, TokenizerRunConfig)
    make_videos(tmp_path, 1)
    for early in (True, False):
        module = TokenizerModule(cfg)
        freeze = pl.callbacks.LambdaCallback(on_train_start=lambda _, m: TokenizerAdapter(m.tokenizer))
        if early:
            TokenizerAdapter(module.tokenizer)
        trainer = pl.Trainer(max_steps=2, callbacks=[] if early else [freeze], limit_val_batches=0, **QUIET)
        with pytest.raises(ValueError, match="VidTok must require gradients, but all are frozen"):
            trainer.fit(module, VideoDataModule(cfg))
    world = configure("world_model", settings("world_model", store, tmp_path))
    assert isinstance(world, WorldModelRunConfig)
    frozen = WorldModelModule(world)
    frozen.model.requires_grad_(False)
    with pytest.raises(ValueError, match="WorldModel must require gradients, but all are frozen"):
        pl.Trainer(max_steps=2, **QUIET).fit(frozen, TokenDataModule(world))
