"""World model runs: train the model of a config, or measure it."""

from typing import Any

import lightning.pytorch as pl
import torch

from vidtok_plugin import training
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.processes import check_no_launcher
from vidtok_plugin.training.cards import run_card
from world_model.data import TokenDataModule
from world_model.measures.plots import write_plots
from world_model.measures.report import Report
from world_model.measures.validation import Validation
from world_model.model import WorldModel
from world_model.training.module import WorldModelModule, WorldModelRunConfig
from world_model.training.sharded import ShardedWorldModelModule, sharding_strategy


def fit_world_model(cfg: WorldModelRunConfig, *, progress: bool = True) -> None:
    """Train, or resume from the run's last checkpoint, and save the model and its adapter in `cfg.output / "model"`.

    progress: show a progress bar if stderr is a terminal, or `trainer.enable_progress_bar` asks for it.
    """
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module, settings = _module(cfg)

    def export() -> None:
        weights = module.full_weights()
        if module.trainer.is_global_zero:
            model = WorldModel(module.model.config, module.model.token_hash)
            model.load_state_dict(weights)
            card = run_card(cfg, module.trainer, [cfg.data.store])
            model.save_pretrained(cfg.output / "model", module.adapter(), card=card)

    data, callbacks = TokenDataModule(cfg), training.default_callbacks(cfg)
    training.fit(cfg, module, data, callbacks, export=export, progress=progress, **settings)


def validate_world_model(cfg: WorldModelRunConfig, *, progress: bool = False) -> Report:
    """Measure the run's last checkpoint (see `world_model.measures`), with averaged weights if the run keeps them.

    A run without checkpoints measures the saved world that `cfg.pretrained` names.

    Writes the report and its plots to `cfg.output / "validation"`. It uses one process and one device, whatever the run
    was trained on.

    Raises:
        FileNotFoundError: the checkpoint, the data or the file of a network is missing.
        ValueError: the checkpoint or the data don't fit the config.
    """
    check_no_launcher("validate", "start it without a launcher")
    last = training.last_checkpoint(cfg.checkpoints)
    if last is None and cfg.pretrained is None:
        raise FileNotFoundError(
            f"validate: there is no checkpoint in {cfg.checkpoints}; run fit first, or measure a saved world with "
            "pretrained=WORLD."
        )
    module = WorldModelModule(cfg)
    if last is not None:
        checkpoint = torch.load(last, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    device = default_device()
    model, adapter = module.model.eval().to(device), module.adapter().to(device)
    report = Validation(model, adapter, cfg.data, cfg.measures, progress=progress).report(str(last or cfg.pretrained))
    folder = cfg.output / "validation"
    report.write(folder)
    write_plots(report, folder)
    return report


def _module(cfg: WorldModelRunConfig) -> tuple[WorldModelModule, dict[str, Any]]:
    """The run's module and the Trainer settings that it needs."""
    if cfg.sharded:
        return ShardedWorldModelModule(cfg), {"strategy": sharding_strategy(cfg.num_processes)}
    return WorldModelModule(cfg), {}
