"""Counts the memory of a training step without computing anything.

One step runs on tensors without data (PyTorch's device "meta"), by the same operations as on a GPU, and every tensor is
counted while it is alive. The workspace of operations, and what allocator and driver add, are not included
(`docs/training.md`, "Memory").
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from meta_autocast import meta_autocast
from torch import Tensor, nn

from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes
from vidtok_plugin.tokenizer.video_checks import check_multiple

ADAM_MOMENTS = 2
Step = Callable[[VidTok, Objective, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of the tensors at the fullest moment of a training step."""

    weights: int  # of the tokenizer, the discriminator and VGG16
    gradients: int
    optimizer: int  # Adam's two moments
    averages: int  # the moving average of the weights, on the same device
    activations: int  # all other tensors alive at that moment: saved for the backward pass, or intermediate

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations


def training_memory(
    architecture: Architecture,
    *,
    frames: int = 17,
    height: int = 256,
    width: int = 256,
    batch_size: int = 1,
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
    checkpointing: bool = True,
    trained: Literal["all", "decoder"] = "all",
    perceptual: bool = True,
    discriminator: Literal["3d", "2d", "none"] = "3d",
    ema: bool = False,
) -> MemoryEstimate:
    """The memory of training a tokenizer with Adam.

    trained: "decoder" freezes the encoder, so that none of its activations are kept.
    perceptual: whether LPIPS is part of the objective.
    discriminator: the one that has started.

    Gradients count in full, in addition to the activations, as with gradient accumulation, where they persist from one
    batch to the next. Without accumulation a step takes somewhat less.

    Raises:
        ValueError: for a size that is not a multiple of the architecture's spatial factor, or an unknown choice.

    Example:
        >>> from vidtok_plugin import presets
        >>> published = presets()["vidtok_kl_causal_488_4chn"].architecture
        >>> small, large = (training_memory(published, height=s, width=s).total for s in (128, 256))
        >>> 5e9 < small < large < 20e9
        True
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"training_memory: precision must be '32-true' or 'bf16-mixed', got {precision!r}.")
    if trained not in ("all", "decoder"):
        raise ValueError(f"training_memory: trained must be 'all' or 'decoder', got {trained!r}.")
    for name, size in (("height", height), ("width", width)):
        factor = architecture.spatial_factor
        check_multiple(size, factor, who="training_memory", name=name, of="the tokenizer's spatial factor")
    cfg = ObjectiveConfig(perceptual="lpips" if perceptual else "none", discriminator=discriminator)
    with torch.device("meta"):
        tokenizer, lpips = VidTok(architecture).train(), LPIPS()
        objective = Objective(cfg, lpips=lpips)
        video = torch.empty(batch_size, 3, frames, height, width)
    tokenizer.encoder.requires_grad_(trained == "all")
    tokenizer.checkpoint_activations(checkpointing)
    trainees = [p for p in chain(tokenizer.parameters(), objective.parameters()) if p.requires_grad]
    with meta_autocast(torch.bfloat16 if precision == "bf16-mixed" else None):
        activations = count_step(tokenizer, objective, video)
    models = bytes_of(tokenizer.parameters()) + bytes_of(objective.parameters())
    return MemoryEstimate(
        weights=models + (bytes_of(lpips.parameters()) if perceptual else 0),
        gradients=bytes_of(trainees),
        optimizer=ADAM_MOMENTS * bytes_of(trainees),
        averages=models if ema else 0,
        activations=activations,
    )


def training_step(tokenizer: VidTok, objective: Objective, video: Tensor) -> None:
    """Forward and backward of both losses, with the discriminator started."""
    out = tokenizer(video)
    step = objective.cfg.disc_start
    loss, _ = objective.generator_loss(video, out, step, tokenizer.decoder.last_weight)
    loss.backward()
    reconstruction = out.reconstruction.detach()
    del out, loss
    judged, _ = objective.discriminator_loss(video, reconstruction, step)
    if judged is not None:
        judged.backward()


def count_step(tokenizer: VidTok, objective: Objective, video: Tensor, step: Step = training_step) -> int:
    """Peak bytes of the tensors alive in a step, without weights, their gradients and the video."""
    parameters = list(chain(tokenizer.parameters(), objective.parameters()))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with LiveBytes([*parameters, *gradients, *objective.buffers(), video]) as live:
        step(tokenizer, objective, video)
    return live.peak


def bytes_of(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters)
