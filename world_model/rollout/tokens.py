"""Video to a world model's tokens and back, in chunks so that memory doesn't grow with the length or the batch.

Shapes: b rollouts, t h w frames and pixels, T H W latent steps, rows and columns, p values of a patch.
"""

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import UNPLACED, VideoTokens, video_tokens
from vidtok_plugin.common.precision import Precision, in_precision
from vidtok_plugin.tokenizer.model import VidTok
from world_model.model import WorldModel

CHUNK_FRAMES = 16  # frames of a prompt that are encoded at a time
CPU_BATCH = 2  # rollouts per call on a CPU: with more, paging the activations in on every call doubles the time


@torch.no_grad()
def encode_prompt(model: WorldModel, adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    """Encode a prompt (b, 3, t, h, w) as tokens (b, T, H, W[, p]) in the model's dtype."""
    tokens = encode_steps(adapter, video)
    return tokens.to(model.dtype) if tokens.is_floating_point() else tokens


@torch.no_grad()
def encode_steps(adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    """Encode video (b, 3, 1 + k f, h, w) as tokens (b, T, H, W[, p])."""
    return torch.cat([_encode_rows(adapter, rows) for rows in _row_chunks(video)])


@torch.no_grad()
def decode_steps(adapter: TokenizerAdapter, tokens: Tensor, precision: Precision = "float32") -> Tensor:
    """Decode all steps to frames (b, 3, t, h, w) in [-1, 1], step by step; equals whole-clip decoding exactly."""
    decoder = in_precision(adapter.tokenizer, precision)
    return torch.cat([_decode_rows(adapter, decoder, rows) for rows in _row_chunks(tokens)])


def reconstruct(adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    """Encode and decode video (b, 3, 1 + k f, h, w)."""
    return decode_steps(adapter, encode_steps(adapter, video))


def _encode_rows(adapter: TokenizerAdapter, video: Tensor) -> Tensor:
    stream = adapter.stream()
    return torch.cat([stream.push(frames).grid_values for frames in video.split(CHUNK_FRAMES, dim=2)], dim=1)


def _decode_rows(adapter: TokenizerAdapter, decoder: VidTok, tokens: Tensor) -> Tensor:
    stream = adapter.decoder_stream(lookahead=True, decoder=decoder)
    frames = [stream.push(video_tokens_of(tokens[:, :1], 1))]
    for step in range(1, tokens.shape[1]):
        frames.append(stream.push(video_tokens_of(tokens[:, step : step + 1], adapter.temporal_factor)))
    return as_frames(torch.cat([*frames, stream.flush()], dim=2))


def as_frames(decoded: Tensor) -> Tensor:
    """Decoded frames in [-1, 1], in float32 if they are bfloat16."""
    return (decoded.float() if decoded.dtype == torch.bfloat16 else decoded).clamp(-1, 1)


def _row_chunks(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(CPU_BATCH if x.device.type == "cpu" else len(x))


def video_tokens_of(tokens: Tensor, num_frames: int) -> VideoTokens:
    """The tokens (b, T, H, W[, p]) of `num_frames` frames as `VideoTokens`, without a check of values."""
    return video_tokens(tokens, num_frames, UNPLACED)
