"""Configs of world model runs that take seconds."""

from pathlib import Path

import pytest

from vidtok_plugin.common.config import load_config
from world_model import WorldModelRunConfig

LIGHTNING_NOISE = pytest.mark.filterwarnings(
    "ignore:The .*_dataloader.* does not have many workers", "ignore:Checkpoint directory .* exists"
)
SMALL = [
    "model.max_steps=4",
    "model.transformer.width=24",
    "model.transformer.depth=1",
    "model.transformer.heads=2",
    "data.window_steps=4",
    "optimizer.lr=1e-2",
    "optimizer.warmup_steps=2",
    "loggers=[csv]",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=-1",
]


def config(store: Path, output: Path, *overrides: str) -> WorldModelRunConfig:
    return load_config(WorldModelRunConfig, [], [f"data.store={store}", f"output={output}", *SMALL, *overrides])
