"""Tokenizer runs: from a config to a trained model in the run's folder."""

import lightning.pytorch as pl

from vidtok_plugin import training
from vidtok_plugin.tokenizer.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.video.data import VideoDataModule


def fit_tokenizer(cfg: TokenizerRunConfig) -> None:
    """Trains, or goes on from the run's last checkpoint; leaves the model in `cfg.output / "model"`."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module = TokenizerModule(cfg)
    trainer = training.fit(cfg, module, VideoDataModule(cfg))
    if trainer.is_global_zero:
        module.tokenizer.save_pretrained(cfg.output / "model")


def validate_tokenizer(cfg: TokenizerRunConfig) -> None:
    """Scores the run's last checkpoint on its validation videos."""
    training.validate(cfg, TokenizerModule(cfg), VideoDataModule(cfg))
