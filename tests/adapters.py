"""Adapters of toy tokenizers, and videos for them."""

from typing import Any

import torch
from torch import Tensor
from toy_tokenizers import random_video, toy_tokenizer

from vidtok_plugin import TokenizerAdapter, VideoTokens, VidTok, presets

KINDS = {
    "fsq": "vidtok_fsq_causal_488_32768",
    "fsq non-causal": "vidtok_fsq_noncausal_488_262144",
    "kl": "vidtok_kl_causal_488_4chn_v1_1",
    "kl f=2": "vidtok_kl_causal_288_8chn",
}


def tokenizer(kind: str, dtype: torch.dtype = torch.float32) -> VidTok:
    return toy_tokenizer(KINDS[kind]).to(dtype)


def make(kind: str, **settings: Any) -> TokenizerAdapter:
    """A new adapter."""
    if kind.startswith("kl"):
        settings = {"patch_size": (1, 1, 2), **settings}
    return TokenizerAdapter(tokenizer(kind), **settings)


def make_preset(name: str, **settings: Any) -> TokenizerAdapter:
    """An adapter of a preset at small width, with the preset's compression."""
    architecture = presets()[name].architecture
    if architecture.regularizer == "kl":
        settings = {"patch_size": (1, 2, 1), **settings}
    small = toy_tokenizer(name, ch_mult=(1,) * len(architecture.ch_mult)).float()
    return TokenizerAdapter(small, **settings)


def video(num_frames: int = 9, *, b: int = 1, seed: int = 0, h: int = 8, w: int = 32) -> Tensor:
    return random_video(num_frames, b=b, h=h, w=w, seed=seed).float()


def values(tokens: VideoTokens) -> Tensor:
    return tokens.ids if tokens.discrete else tokens.patches
