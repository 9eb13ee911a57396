"""World model runs: from a config to a trained model in the run's folder."""

import lightning.pytorch as pl

from vidtok_plugin import training
from world_model.data import TokenDataModule
from world_model.module import WorldModelModule, WorldModelRunConfig


def fit_world_model(cfg: WorldModelRunConfig) -> None:
    """Trains, or goes on from the run's last checkpoint; leaves the model and its adapter in `cfg.output / "model"`."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module = WorldModelModule(cfg)
    trainer = training.fit(cfg, module, TokenDataModule(cfg))
    if trainer.is_global_zero:
        module.model.save_pretrained(cfg.output / "model", module.adapter())


def validate_world_model(cfg: WorldModelRunConfig) -> None:
    """Scores the run's last checkpoint on its store's validation split."""
    training.validate(cfg, WorldModelModule(cfg), TokenDataModule(cfg))
