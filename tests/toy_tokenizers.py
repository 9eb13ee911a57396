"""Tokenizers at toy width in which every layer has an effect, and videos for them."""

import copy
import functools
from typing import Any

import torch
from golden_weights import fill
from torch import Tensor

from vidtok_plugin import VidTok

TOY = {"ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}


def toy_tokenizer(preset: str, **overrides: Any) -> VidTok:
    """A new model in eval mode and float64, so that rounding errors are far below any tolerance.

    Its weights are random everywhere, because temporal layers are initialized to the identity. The encoder's last layer
    has large weights, so that codes spread over the whole codebook.
    """
    return copy.deepcopy(_toy_tokenizer(preset, **overrides))


@functools.cache
def _toy_tokenizer(preset: str, **overrides: Any) -> VidTok:
    model: Any = fill(VidTok.from_preset(preset, **{**TOY, **overrides}))
    if model.codebook_size is not None:
        with torch.no_grad():
            for name, parameter in model.encoder.conv_out.named_parameters():
                parameter.mul_(4 if name.endswith("weight") else 1)
    return model.eval().double()


def random_video(num_frames: int, *, b: int = 1, h: int = 8, w: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, num_frames, h, w, generator=generator, dtype=torch.float64) * 2 - 1


def random_latents(model: VidTok, num_latents: int, *, b: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (b, model.latent_channels, num_latents, 1, 2)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference, relative to the largest value of `b`."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() if a.numel() else 0.0
