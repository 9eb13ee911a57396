"""Toy tokenizer runs whose logged scalars tests can inspect."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from training_runs import NARROW_WIDTHS

from vidtok_plugin import training
from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.objective import discriminators
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video import VideoDataModule

LIGHTNING_NOISE = pytest.mark.filterwarnings(
    "ignore:The .*_dataloader.* does not have many workers",
    "ignore:Checkpoint directory .* exists",
    "ignore:Found .* in eval mode at the start of training",  # a frozen encoder
)
SMALL = [
    "preset=vidtok_tiny",
    "from_scratch=true",
    "architecture={ch: 4, ch_mult: [1, 1, 1, 1], num_res_blocks: 1}",
    "data.clip_length=5",
    "data.height=16",
    "data.width=16",
    "data.batch_size=2",
    "data.clips_per_epoch=100",
    "data.validation_every=3",
    "data.validation_clips=5",
    "objective={perceptual: none, disc_start: 2}",
    "optimizer.lr=1e-2",
    "discriminator_optimizer.lr=3e-3",
    "loggers=[csv]",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=4",
    "trainer.check_val_every_n_epoch=null",
    "collapse={window: 3, grace: 4}",
]


def config(folder: Path, output: Path, *overrides: str) -> TokenizerRunConfig:
    return load_config(
        TokenizerRunConfig,
        [],
        [f"data.train=[{folder}]", f"data.validation=[{folder}]", f"output={output}", *SMALL, *overrides],
    )


class Metrics(pl.Callback):
    """Records the logged scalars of each log step, by batches so far."""

    def __init__(self) -> None:
        self.lines: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self.lines[trainer.global_step] = {name: float(value) for name, value in trainer.logged_metrics.items()}

    def series(self, name: str) -> dict[int, float]:
        return {step: line[name] for step, line in self.lines.items() if name in line}


def run(cfg: TokenizerRunConfig, module: TokenizerModule, *callbacks: pl.Callback) -> Metrics:
    """Trains with these callbacks; returns the logged scalars."""
    torch.manual_seed(0)
    metrics = Metrics()
    training.fit(cfg, module, VideoDataModule(cfg.data), [*callbacks, metrics])
    return metrics


def module_of(cfg: TokenizerRunConfig) -> TokenizerModule:
    torch.manual_seed(0)
    return TokenizerModule(cfg)


if __name__ == "__main__":  # a run as a script, which Lightning can start in further processes
    discriminators.WIDTHS = NARROW_WIDTHS
    fit_tokenizer(config(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
