"""Many clips through the tokenizer, a few at a time: their tokens, and what those decode to.

Shapes: b clips, T latent steps, t h w frames and pixels.
"""

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import TokenGrid

# Clips on a CPU, where the activations of more are paged in anew each time: as much time again.
ON_CPU = 2


def encode(adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    """Video (b, 3, t, h, w) -> tokens (b, T, H, W[, d])."""
    return torch.cat([adapter.encode(part).grid_values for part in _parts(video)])


@torch.no_grad()
def decode(adapter: TokenizerAdapter, tokens: Tensor) -> Tensor:
    """Tokens (b, T, H, W[, d]) of whole steps -> video (b, 3, 1 + (T - 1) f, h, w)."""
    grid = TokenGrid(*tokens.shape[1:4])
    given = adapter.tokens_from_patches if tokens.is_floating_point() else adapter.tokens_from_ids
    return torch.cat([adapter.decode(given(part.flatten(1, 3), grid)) for part in _parts(tokens)])


def reconstruct(adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    """Video of 1 + k f frames as the tokenizer gives it back."""
    return decode(adapter, encode(adapter, video))


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(ON_CPU if x.device.type == "cpu" else len(x))
