"""TokenizerModule: optimization and logging of a VidTok, for Lightning's Trainer; and its config."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from vidtok_plugin.common.frozen_weights import FrozenWeights
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.codebook import code_statistics, count_codes
from vidtok_plugin.tokenizer.model import VidTok, override_architecture
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.presets import get_preset
from vidtok_plugin.tokenizer.training.collapse import CollapseConfig
from vidtok_plugin.tokenizer.video_checks import check_multiple
from vidtok_plugin.tokenizer.weights.checkpoints import architecture_settings
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.module import Loss, TrainingModule
from vidtok_plugin.training.optimization import OptimizerConfig, configure_optimizers
from vidtok_plugin.video.batch import VideoBatch, as_video
from vidtok_plugin.video.data import VideoDataConfig, VideoDataModule

DEFAULT_PRESET = "vidtok_tiny"


@dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(RunConfig):
    """A run that trains or fine-tunes a tokenizer."""

    preset: str | None = None  # by default vidtok_tiny or that of `pretrained`; a bare weights file needs it
    from_scratch: bool = False  # random weights in place of those of `pretrained`
    pretrained: str | None = None  # a source for VidTok.from_pretrained; by default the preset's own weights
    architecture: dict[str, Any] = field(default_factory=dict)  # overrides of the preset; from scratch only
    trained: Literal["all", "decoder"] = "all"  # decoder: freezes the encoder, which keeps ids and latents unchanged
    data: VideoDataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig | None = None  # by default `optimizer`, without Muon
    activation_checkpointing: bool = False  # recomputes activations in the backward pass: less memory, more time
    compile: bool = False  # torch.compile for encoder and decoder
    pictures: int = 4  # validation clips that are shown with their reconstructions after each validation
    collapse: CollapseConfig = CollapseConfig()  # when to warn of a collapsed codebook or discriminator
    output: Path = Path("runs/tokenizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 0:
            raise ValueError(f"TokenizerRunConfig: pictures must not be negative, got {self.pictures}; 0 shows none.")
        self.check_micro_batches(self.data.batch_size)
        min_size = self.objective.min_size
        if min(self.data.height, self.data.width) < min_size:
            raise ValueError(
                f"TokenizerRunConfig: data.height and data.width must be at least {min_size} for this objective "
                f"(LPIPS, discriminator), got {self.data.height} and {self.data.width}; train on larger frames, or set "
                "objective.perceptual=none or objective.discriminator=none."
            )
        preset = get_preset(self.preset or DEFAULT_PRESET).architecture
        if self.architecture and not self.from_scratch:
            raise ValueError(
                "TokenizerRunConfig: no checkpoint has weights for architecture overrides; add from_scratch=true or "
                "leave them out."
            )
        if self.from_scratch and self.pretrained is not None:
            raise ValueError("TokenizerRunConfig: from_scratch=true and pretrained exclude each other.")
        if self.objective.still_weight and self.trained == "decoder":
            raise ValueError(
                "TokenizerRunConfig: objective.still_weight trains the encoder, which trained=decoder freezes; set one "
                f"of them only, got still_weight={self.objective.still_weight}."
            )
        if self.pretrained is None:  # else the architecture is known once it is loaded
            self._check_sizes(override_architecture(preset, self.architecture))

    def build(self) -> VidTok:
        """The tokenizer to train.

        Raises:
            FileNotFoundError, ValueError: as `VidTok.from_pretrained`, or the data's size does not fit the model.
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
        if not self.objective.still_weight:
            return
        if not architecture.causal:
            raise ValueError(
                "TokenizerRunConfig: objective.still_weight is for causal tokenizers, got "
                f"{self.objective.still_weight}; set it to 0."
            )
        factor, length = architecture.temporal_factor, self.data.clip_length
        if (length - 1) % factor or length <= factor + 1:
            raise ValueError(
                f"TokenizerRunConfig: with objective.still_weight, data.clip_length must be 1 + k * {factor} with k of "
                f"at least 2, got {length}."
            )


class TokenizerModule(TrainingModule):
    """Trains `self.tokenizer` on batches of video (b, 3, t, h, w): `trainer.fit(TokenizerModule(cfg), data)`.

    A batch is a `VideoBatch`, or a plain tensor from any other loader.
    """

    def __init__(self, cfg: TokenizerRunConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg
        self.tokenizer = cfg.build()
        self.objective = Objective(cfg.objective)
        self._frozen_encoder: FrozenWeights | None = None
        self._freeze_encoder()
        self.register_load_state_dict_post_hook(TokenizerModule._freeze_encoder)  # a resumed run has its own encoder
        if cfg.activation_checkpointing:
            self.tokenizer.checkpoint_activations()
        if cfg.compile:
            self.tokenizer.compile_networks()
        self.train()  # pretrained models are in eval mode

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.cfg.trained == "decoder":
            self.tokenizer.encoder.eval()
        return self

    def setup(self, stage: str) -> None:
        self.objective.load()
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and self.objective.discriminator is not None:
            # Each of the two losses leaves the parameters of the other unused.
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def _freeze_encoder(self, *_: Any) -> None:
        if self.cfg.trained == "decoder":
            self._frozen_encoder = FrozenWeights(self.tokenizer.encoder, who="TokenizerModule", name="encoder")

    def check_frozen(self, *, values: bool = False) -> None:
        """A ValueError if `trained` is "decoder" and the encoder is not what it was; `values`: read all its weights."""
        if self._frozen_encoder is not None:
            self._frozen_encoder.check(self.tokenizer.encoder, values=values)

    # Training

    def optimizer_names(self) -> list[str]:
        return ["generator"] if self.objective.discriminator is None else ["generator", "discriminator"]

    def optimizer_configs(self) -> list[OptimizerConfig]:
        discriminator = self.cfg.discriminator_optimizer or replace(self.cfg.optimizer, muon_lr=None)
        return [self.cfg.optimizer, discriminator][: len(self.optimizer_names())]

    def updated_buffers(self) -> list[Tensor]:
        return list(self.objective.buffers())

    def fixed_settings(self) -> dict[str, Any]:
        cfg = self.cfg
        own = {"trained": cfg.trained, "objective.discriminator": cfg.objective.discriminator}
        return super().fixed_settings() | own | {"objective.learn_logvar": cfg.objective.learn_logvar}

    def trained_network(self) -> nn.Module:
        return self.tokenizer.decoder if self.cfg.trained == "decoder" else self.tokenizer

    def configure_optimizers(self) -> list[OptimizerLRSchedulerConfig]:
        self.check_trainable()
        parameters = [list(self.tokenizer.parameters())]
        if self.objective.logvar is not None:
            parameters[0].append(self.objective.logvar)
        if self.objective.discriminator is not None:
            parameters.append(list(self.objective.discriminator.parameters()))
        steps = self.trainer.estimated_stepping_batches
        return [
            configure_optimizers(group, cfg, steps, bfloat16=self.mixed_bfloat16)
            for group, cfg in zip(parameters, self.optimizer_configs(), strict=True)
        ]

    def losses(self, batch: VideoBatch | Tensor, step: int) -> Iterator[Loss]:
        self.check_frozen()
        video = as_video(batch)
        out = self.tokenizer(video)
        loss, statistics = self.objective.generator_loss(video, out, step, self.tokenizer.decoder.last_weight)
        statistics["psnr"] = frame_psnr(video, out.reconstruction.detach()).mean()
        yield Loss(name="generator", value=loss, statistics=statistics)
        if self.objective.discriminator is not None:
            loss_or_none, statistics = self.objective.discriminator_loss(video, out.reconstruction.detach(), step)
            yield Loss(name="discriminator", value=loss_or_none, statistics=statistics)

    def on_train_batch_end(self, *_: Any) -> None:
        if isinstance(data := getattr(self.trainer, "datamodule", None), VideoDataModule):
            # The count of the first process; each process reads different videos.
            self.log("train/unreadable_videos", float(data.unreadable.count), rank_zero_only=True)

    def tensors_of(self, batch: VideoBatch | Tensor) -> dict[str, Tensor]:
        return {"video": as_video(batch)}

    def batch_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["video"]

    def sizes(self, batch: VideoBatch | Tensor) -> dict[str, int]:
        video = as_video(batch)
        return {"clips": len(video), "frames": len(video) * video.shape[2]}

    def origins(self, batch: VideoBatch | Tensor) -> list[str]:
        if isinstance(batch, Tensor):
            return [f"clip {index} of a loader that does not name its files" for index in range(len(batch))]
        return list(batch.origins)

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._code_counts = torch.zeros(self.tokenizer.codebook_size or 0, device=self.device)

    def validation_step(self, batch: VideoBatch | Tensor, batch_index: int) -> Tensor:
        """Logs the metrics; returns the reconstruction, for callbacks."""
        self.check_frozen()
        video = as_video(batch)
        out = self.tokenizer(video)
        scores = {
            "val/psnr": frame_psnr(video, out.reconstruction).mean(),
            "val/l1": (video - out.reconstruction).abs().mean(),
        }
        if self.objective.perceptual is not None:
            frames, made = (rearrange(x, "b c t h w -> (b t) c h w") for x in (video, out.reconstruction))
            scores["val/lpips"] = self.objective.perceptual(frames, made).mean()
        self.log_dict(scores, prog_bar=True, batch_size=len(video), sync_dist=True)
        if out.indices is not None:
            self._code_counts += count_codes(out.indices, len(self._code_counts))
        return out.reconstruction

    def on_validation_epoch_end(self) -> None:
        if len(self._code_counts):
            counts = self.trainer.strategy.reduce(self._code_counts, reduce_op="sum")
            self.log_dict({f"val/{name}": value for name, value in code_statistics(counts).items()}, sync_dist=True)

    # Checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved, ours = checkpoint.get("architecture"), architecture_settings(self.tokenizer.architecture)
        if saved is None:
            raise ValueError("TokenizerModule: the checkpoint must be of a tokenizer, got one of another kind.")
        if saved != ours:
            differences = [f"{key} ({saved.get(key)}, not {ours[key]})" for key in ours if saved.get(key) != ours[key]]
            raise ValueError(
                f"TokenizerModule: the checkpoint has another architecture, it differs in {', '.join(differences)}; "
                "resume with the config that it was trained with, or start a new run in another output folder."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_frozen(values=True)
        super().on_save_checkpoint(checkpoint)
        checkpoint["architecture"] = architecture_settings(self.tokenizer.architecture)
