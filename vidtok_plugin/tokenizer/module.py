"""TokenizerModule: the optimisation and the logging of a VidTok, for Lightning's Trainer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.checkpoints import architecture_settings
from vidtok_plugin.tokenizer.model import VidTok, override_architecture
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig, frame_psnr
from vidtok_plugin.tokenizer.presets import get_preset
from vidtok_plugin.tokenizer.video_checks import check_multiple
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from vidtok_plugin.video.data import VideoDataConfig

DEFAULT_PRESET = "vidtok_tiny"


@dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(RunConfig):
    """A run that trains or fine-tunes a tokenizer."""

    preset: str | None = None  # by default vidtok_tiny, or what `pretrained` tells; a bare weights file needs it
    from_scratch: bool = False  # random weights; else those of `pretrained`
    pretrained: str | None = None  # what VidTok.from_pretrained takes; by default the preset's own
    architecture: dict[str, Any] = field(default_factory=dict)  # overrides of the preset's, from scratch only
    data: VideoDataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    output: Path = Path("runs/tokenizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        preset = get_preset(self.preset or DEFAULT_PRESET).architecture
        if self.architecture and not self.from_scratch:
            raise ValueError(
                "TokenizerRunConfig: architecture overrides make weights that no checkpoint has; "
                "add from_scratch=true or leave them out."
            )
        if self.from_scratch and self.pretrained is not None:
            raise ValueError("TokenizerRunConfig: from_scratch=true and pretrained exclude each other.")
        if self.pretrained is None:  # else it tells its own architecture when it is loaded
            self._check_sizes(override_architecture(preset, self.architecture))

    def build(self) -> VidTok:
        """The tokenizer to train.

        Raises:
            FileNotFoundError, ValueError: as `VidTok.from_pretrained` does, or if the data's sizes do not fit it.
        """
        if self.from_scratch:
            return VidTok.from_preset(self.preset or DEFAULT_PRESET, **self.architecture)
        tokenizer = VidTok.from_pretrained(self.pretrained or self.preset or DEFAULT_PRESET, preset=self.preset)
        self._check_sizes(tokenizer.architecture)
        return tokenizer

    def _check_sizes(self, architecture: Architecture) -> None:
        for name in ("height", "width"):
            check_multiple(
                getattr(self.data, name),
                architecture.spatial_factor,
                who="TokenizerRunConfig",
                name=f"data.{name}",
                of="the tokenizer's spatial factor",
            )


class TokenizerModule(pl.LightningModule):
    """Trains `self.tokenizer` on batches of video (b, 3, t, h, w); `trainer.fit(TokenizerModule(cfg), data)`."""

    def __init__(self, cfg: TokenizerRunConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = cfg.build().train()  # pretrained models come in eval mode
        self.objective = Objective(cfg.objective)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.objective.load()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizers(
            self.tokenizer.parameters(), self.cfg.optimizer, int(self.trainer.estimated_stepping_batches)
        )

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        if self.cfg.optimizer.gradient_clip is not None:
            self.clip_gradients(optimizer, self.cfg.optimizer.gradient_clip, "norm")

    def training_step(self, video: Tensor, batch_index: int) -> Tensor:
        out = self.tokenizer(video)
        loss, parts = self.objective.generator_loss(video, out, self.global_step, self.tokenizer.decoder.last_weight)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": part for name, part in parts.items()})
        self.log("train/psnr", frame_psnr(video, out.reconstruction.detach()).mean(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._used_codes = torch.zeros(self.tokenizer.codebook_size or 0, dtype=torch.bool, device=self.device)

    def validation_step(self, video: Tensor, batch_index: int) -> None:
        out = self.tokenizer(video)
        scores = {
            "val/psnr": frame_psnr(video, out.reconstruction).mean(),
            "val/l1": (video - out.reconstruction).abs().mean(),
        }
        self.log_dict(scores, prog_bar=True, batch_size=len(video), sync_dist=True)
        if out.indices is not None:
            self._used_codes[out.indices.flatten()] = True

    def on_validation_epoch_end(self) -> None:
        if len(self._used_codes):
            used = self.trainer.strategy.reduce(self._used_codes.float(), reduce_op="sum")
            self.log("val/codebook_usage", (used > 0).float().mean(), sync_dist=True)  # alike in all processes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, ours = checkpoint.get("architecture"), architecture_settings(self.tokenizer.architecture)
        if saved is None:
            raise ValueError("TokenizerModule: the checkpoint must be a tokenizer's, got one of another kind.")
        if saved != ours:
            differences = [f"{key} ({saved.get(key)}, not {ours[key]})" for key in ours if saved.get(key) != ours[key]]
            raise ValueError(
                "TokenizerModule: the checkpoint must be of this very architecture, but it differs in "
                f"{', '.join(differences)}; resume with the config that it was trained with, or start anew in another "
                "output folder."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = architecture_settings(self.tokenizer.architecture)
