"""Between video and a world model's tokens, a part at a time: prompts are encoded, and drawn steps decoded, as streams.

Shapes: b rollouts, t h w frames and pixels, T H W latent steps, rows and columns, p values of a patch.
"""

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.tokens import TokenGrid
from world_model.model import WorldModel

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.adapter.tokens import VideoTokens

ENCODED_AT_ONCE = 16  # frames of a prompt, so that a long one needs no more memory
ROWS_ON_CPU = 2  # where the activations of more are paged in anew each time, which takes as much time again


@torch.no_grad()
def encode_prompt(model: WorldModel, adapter: "TokenizerAdapter", video: Tensor) -> Tensor:
    """The tokens (b, T, H, W[, p]) of a prompt (b, 3, t, h, w), as the model takes them."""
    tokens = encode_steps(adapter, video)
    return tokens.to(model.dtype) if tokens.is_floating_point() else tokens


@torch.no_grad()
def encode_steps(adapter: "TokenizerAdapter", video: Tensor) -> Tensor:
    """Video (b, 3, 1 + k f, h, w) -> tokens (b, T, H, W[, p])."""
    return torch.cat([_encode_rows(adapter, rows) for rows in _parts(video)])


@torch.no_grad()
def decode_steps(adapter: "TokenizerAdapter", tokens: Tensor) -> Tensor:
    """All frames (b, 3, t, h, w) in [-1, 1] of whole steps, one step at a time, exactly as of the whole clip."""
    return torch.cat([_decode_rows(adapter, rows) for rows in _parts(tokens)])


def reconstruct(adapter: "TokenizerAdapter", video: Tensor) -> Tensor:
    """Video (b, 3, 1 + k f, h, w) as the tokenizer gives it back."""
    return decode_steps(adapter, encode_steps(adapter, video))


def _encode_rows(adapter: "TokenizerAdapter", video: Tensor) -> Tensor:
    stream = adapter.stream()
    return torch.cat([stream.push(frames).grid_values for frames in video.split(ENCODED_AT_ONCE, dim=2)], dim=1)


def _decode_rows(adapter: "TokenizerAdapter", tokens: Tensor) -> Tensor:
    stream = adapter.decoder_stream(lookahead=True)
    frames = [stream.push(video_tokens_of(adapter, tokens[:, :1], 1))]
    for step in range(1, tokens.shape[1]):
        frames.append(stream.push(video_tokens_of(adapter, tokens[:, step : step + 1], adapter.temporal_factor)))
    return torch.cat([*frames, stream.flush()], dim=2).clamp(-1, 1)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(ROWS_ON_CPU if x.device.type == "cpu" else len(x))


def video_tokens_of(adapter: "TokenizerAdapter", tokens: Tensor, num_frames: int) -> "VideoTokens":
    """The model's tokens of `num_frames` frames as the adapter's."""
    grid = TokenGrid(*tokens.shape[1:4])
    if adapter.kind == "discrete":
        return adapter.tokens_from_ids(tokens.flatten(1), grid, num_frames)
    return adapter.tokens_from_patches(rearrange(tokens, "b T H W p -> b (T H W) p"), grid, num_frames)
