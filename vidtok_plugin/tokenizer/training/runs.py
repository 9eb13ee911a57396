"""Tokenizer runs: from a config to a trained model in the run's folder."""

import lightning.pytorch as pl

from vidtok_plugin import training
from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsageMonitor
from vidtok_plugin.tokenizer.training.collapse import CollapseMonitor
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.tokenizer.training.pictures import ReconstructionPictures
from vidtok_plugin.training.cards import run_card
from vidtok_plugin.video.data import VideoDataModule


def fit_tokenizer(cfg: TokenizerRunConfig, *, progress: bool = True) -> None:
    """Trains, or resumes from the run's last checkpoint, and saves the model to `cfg.output / "model"`.

    progress: show a progress bar if stderr is a terminal, or `trainer.enable_progress_bar` asks for it.
    """
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module = TokenizerModule(cfg)

    def export() -> None:
        module.check_frozen(values=True)
        if module.trainer.is_global_zero:
            card = run_card(cfg, module.trainer, cfg.data.train)
            module.tokenizer.save_pretrained(cfg.output / "model", card=card)

    training.fit(cfg, module, VideoDataModule(cfg), default_callbacks(cfg), export=export, progress=progress)


def default_callbacks(cfg: TokenizerRunConfig) -> list[pl.Callback]:
    """The callbacks of a tokenizer run: codebook usage, collapse, pictures, and those of every run."""
    codebook = CodebookUsageMonitor(cfg.collapse.window)
    collapse = CollapseMonitor(cfg.collapse, codebook, disc_start=cfg.objective.disc_start)
    pictures = [ReconstructionPictures(cfg.pictures_folder, cfg.pictures)] if cfg.pictures else []
    return [codebook, collapse, *pictures, *training.default_callbacks(cfg)]


def validate_tokenizer(cfg: TokenizerRunConfig, *, progress: bool = True, table: bool = True) -> dict[str, float]:
    """Evaluates the run's last checkpoint on its validation videos; -> the metrics, by name.

    table: print them, too.
    """
    return training.validate(cfg, TokenizerModule(cfg), VideoDataModule(cfg), table=table, progress=progress)
