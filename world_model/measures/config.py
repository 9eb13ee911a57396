"""Settings of `world-model validate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.metrics.fvd import MIN_FRAMES
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class MeasuresConfig:
    """Which rollouts to measure, and the networks that some measures need.

    `episodes` is a source of held-out recordings (see `vidtok_plugin.open_episodes`) with the size and frame rate of
    the training videos, or such as `tokenize --size` and `--fps` brought to them. It supplies the prompts and the real
    futures. A token store holds no video: without `episodes` there are no real futures to compare with, and the drift
    rollouts start from the store's validation tokens, decoded.
    """

    RENAMED: ClassVar[dict[str, str]] = {"drift_stretch": "drift_segment"}

    episodes: Path | None = None
    camera: str | None = None  # of episodes with several; KEY,KEY puts them side by side
    prompts: int = 32  # maximum; fewer if the episodes are too short for that many without overlap
    prompt_frames: int = 17
    future_frames: int = 16
    drift_rollouts: int = 8  # maximum, likewise
    drift_frames: int = 128  # imagined by each drift rollout
    drift_segment: int = 16  # frames that are summarised by one statistic
    rollouts_at_once: int = 16  # batch size
    sampler: Sampler = field(default_factory=Sampler)
    decoding: Decoding = field(default_factory=Decoding)
    lpips_vgg: Path | None = None  # for LPIPS: torchvision's VGG16 or a published VidTok checkpoint
    i3d: Path | None = None  # for FVD: I3D in TorchScript

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (
            "prompts",
            "prompt_frames",
            "future_frames",
            "drift_rollouts",
            "drift_segment",
            "rollouts_at_once",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"MeasuresConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.drift_frames < self.drift_segment or self.drift_frames % self.drift_segment:
            above = (self.drift_frames // self.drift_segment + 1) * self.drift_segment
            raise ValueError(
                f"MeasuresConfig: drift_frames must be a multiple of drift_segment, {self.drift_segment}, got "
                f"{self.drift_frames}; {above} is one."
            )
        if self.i3d is not None and self.future_frames < MIN_FRAMES:
            raise ValueError(
                f"MeasuresConfig: future_frames must be at least {MIN_FRAMES} for FVD, got {self.future_frames}; "
                "imagine longer futures, or leave i3d out."
            )

    def check_fits(self, temporal_factor: int) -> None:
        """Check that prompts, futures and segments are whole latent steps of `temporal_factor` frames."""
        f = temporal_factor
        for name, rest in (("prompt_frames", 1), ("future_frames", 0), ("drift_segment", 0)):
            frames = getattr(self, name)
            if (frames - rest) % f:
                below = (frames - rest) // f * f + rest
                nearest = f"nearest are {below} and {below + f}" if below > 0 else f"nearest is {below + f}"
                raise ValueError(
                    f"MeasuresConfig: {name} must be {'1 + ' if rest else ''}a multiple of {f} (the tokenizer's "
                    f"temporal factor), got {frames}; the {nearest}."
                )
