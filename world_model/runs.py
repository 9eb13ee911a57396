"""World model runs: from a config to a trained model in the run's folder."""

from typing import Any

import lightning.pytorch as pl

from vidtok_plugin import training
from world_model.data import TokenDataModule
from world_model.model import WorldModel
from world_model.module import WorldModelModule, WorldModelRunConfig
from world_model.sharded import ShardedWorldModelModule, sharding_strategy


def fit_world_model(cfg: WorldModelRunConfig) -> None:
    """Trains, or goes on from the run's last checkpoint; leaves the model and its adapter in `cfg.output / "model"`."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module, settings = _module(cfg)
    trainer = training.fit(cfg, module, TokenDataModule(cfg), training.watchers(cfg), **settings)
    weights = module.full_weights()
    if trainer.is_global_zero:
        model = WorldModel(module.model.config, module.model.adapter_hash)
        model.load_state_dict(weights)
        model.save_pretrained(cfg.output / "model", module.adapter())


def validate_world_model(cfg: WorldModelRunConfig) -> None:
    """Scores the run's last checkpoint on its store's validation split."""
    module, settings = _module(cfg)
    training.validate(cfg, module, TokenDataModule(cfg), **settings)


def _module(cfg: WorldModelRunConfig) -> tuple[WorldModelModule, dict[str, Any]]:
    """The module of a run, and the settings of the Trainer that it needs."""
    if cfg.sharded:
        return ShardedWorldModelModule(cfg), {"strategy": sharding_strategy(cfg.num_processes)}
    return WorldModelModule(cfg), {}
