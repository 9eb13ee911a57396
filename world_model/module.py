"""WorldModelModule: the optimisation and the logging of a world model, for Lightning's Trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.config import to_dict
from vidtok_plugin.store import ADAPTER_FOLDER, TokenStore, read_metadata
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from world_model.architecture import WorldModelConfig
from world_model.data import TokenDataConfig, token_spec, window_actions
from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class WorldModelRunConfig(RunConfig):
    """A run that trains a world model on a token store."""

    model: WorldModelConfig = WorldModelConfig()
    data: TokenDataConfig
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup_steps=50, gradient_clip=1.0
    )
    output: Path = Path("runs/world_model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.window_steps > self.model.max_steps:
            raise ValueError(
                "WorldModelRunConfig: data.window_steps must be at most model.max_steps, "
                f"{self.model.max_steps}, got {self.data.window_steps}."
            )


class WorldModelModule(pl.LightningModule):
    """Trains `self.model` on windows of tokens: `trainer.fit(WorldModelModule(cfg), TokenDataModule(cfg))`.

    The tokens' sizes are taken from the store. Cross entropies are in nats a token, over the steps after each
    window's first.
    """

    def __init__(self, cfg: WorldModelRunConfig) -> None:
        super().__init__()
        self.cfg = cfg
        metadata = read_metadata(cfg.data.store)
        self.model = WorldModel(cfg.model.for_tokens(token_spec(metadata)), metadata.adapter_hash)

    def adapter(self) -> TokenizerAdapter:
        """The adapter that wrote the tokens, to be saved with the model."""
        adapter = TokenizerAdapter.from_pretrained(Path(self.cfg.data.store) / ADAPTER_FOLDER)
        TokenStore(self.cfg.data.store).check(adapter)
        return adapter

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = self.trainer.estimated_stepping_batches
        return configure_optimizers(
            self.model.parameters(),
            self.cfg.optimizer,
            max_steps=-1 if steps == float("inf") else int(steps),
            tables=self.model.tables(),
        )

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        if self.cfg.optimizer.gradient_clip is not None:
            self.clip_gradients(optimizer, self.cfg.optimizer.gradient_clip, "norm")

    def training_step(self, batch: TensorDict, batch_index: int) -> Tensor:
        loss = self.model.loss(batch["codes"], window_actions(batch), batch["valid"])
        self.log("train/cross_entropy", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: TensorDict, batch_index: int) -> None:
        codes, valid = batch["codes"][:, 1:], batch["valid"][:, 1:]
        logits = self.model(batch["codes"], window_actions(batch))[:, 1:][valid].flatten(0, 2)
        targets = codes[valid].flatten()
        scored = {
            "val/cross_entropy": F.cross_entropy(logits.float(), targets),
            "val/accuracy": (logits.argmax(-1) == targets).float().mean(),
        }
        self.log_dict(scored, prog_bar=True, batch_size=len(targets))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["world_model"] = to_dict(self.model.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, ours = checkpoint.get("world_model"), to_dict(self.model.config)
        if saved != ours:
            if saved is None:
                raise ValueError("WorldModelModule: the checkpoint must be a world model's, got one of another kind.")
            keys = [key for key in ours if saved.get(key) != ours[key]]
            raise ValueError(
                "WorldModelModule: the checkpoint must be of this very architecture, but it differs in "
                f"{', '.join(f'model.{key} ({saved.get(key)}, not {ours[key]})' for key in keys)}; resume "
                "with the config that it was trained with, or start anew in another output folder."
            )
