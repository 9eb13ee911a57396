"""Pairs of a video and its reconstruction, in chunks of a few frames."""

import math
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.unreadable import UnreadableVideoError

READ_FRAMES = 32  # decoded at once
RESIZED_FRAMES = 8  # resized at once
STREAM_FRAMES = 16  # encoded at once when streaming


def frame_rate(video: Episode) -> float:
    """The frames per second of a video, which is opened; raises the errors of `probe`.

    Raises:
        UnreadableVideoError: it has none, or an impossible one.
    """
    rate = video.frame_rate() if video.fps is None else video.fps
    if not 0 < rate < math.inf:
        raise UnreadableVideoError(f"Video {video} cannot be sampled: it has no frame rate; re-encode or remove it.")
    return rate


def sampled(num_frames: int, rate: float, fps: float) -> range:
    """The sampled frames of a video: every k-th, where k is its rate divided by `fps`, rounded, and at least 1."""
    return range(0, num_frames, max(1, round(rate / fps)))


def read_scaled(video: Episode, step: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Every `step`-th frame of a video in blocks (1, 3, t, size, size) in [-1, 1]; raises errors of `read_in_order`."""
    seen = 0
    for block in video.blocks(READ_FRAMES):
        frames = torch.from_numpy(block[-seen % step :: step])
        seen += len(block)
        if len(frames):
            resized = [resize_as_published(chunk.to(device), size) for chunk in frames.split(RESIZED_FRAMES)]
            yield rearrange(torch.cat(resized), "t c h w -> 1 c t h w")


def resize_as_published(frames: Tensor, size: int) -> Tensor:
    """uint8 frames (t, h, w, 3) -> (t, 3, size, size) in [-1, 1], resized as for the published figures.

    This is torchvision's Resize of the short side, with antialiasing, and CenterCrop. Training clips are resized by
    area (`video.resizing`) instead, which takes 1.2 ms of CPU time a frame from 720x1280 to 256x256, against 23 ms
    here, but leaves frames sharper: PSNR of vidtok_tiny is 0.26 dB lower on them and SSIM 0.03, too much for figures
    that are compared with published ones.
    """
    h, w = frames.shape[1:3]
    scaled = size * h // min(h, w), size * w // min(h, w)
    x = rearrange(frames, "t h w c -> t c h w").float() / 127.5 - 1
    x = interpolate(x, scaled, mode="bilinear", align_corners=False, antialias=True)
    top, left = (round((length - size) / 2) for length in scaled)
    return x[:, :, top : top + size, left : left + size]


def clip_pairs(tokenizer: VidTok, frames: Iterable[Tensor], clip_frames: int) -> Iterator[Tensor]:
    """Pairs (2, 3, clip_frames, h, w) of independent clips and their reconstructions; the last clip is padded."""
    for chunk in rechunk(frames, clip_frames):
        clip = pad_clip(chunk, clip_frames)
        yield torch.cat([clip, tokenizer(clip).reconstruction.float()])


def stream_pairs(tokenizer: VidTok, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Pairs (2, 3, t, h, w) of a video and its streamed reconstruction, in chunks of any length."""
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    waiting: Tensor | None = None  # originals that are not reconstructed yet
    for chunk in rechunk(frames, STREAM_FRAMES):
        waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
        made = decoder.push(encoder.push(chunk).latents).float()
        yield torch.cat([waiting[:, :, : made.shape[2]], made])
        waiting = waiting[:, :, made.shape[2] :]
    assert waiting is not None  # a video has frames
    made = torch.cat([decoder.push(encoder.flush().latents), decoder.flush()], dim=2).float()
    yield torch.cat([waiting, made[:, :, : waiting.shape[2]]])


def rechunk(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Splits blocks (b, c, t, h, w) of any lengths into chunks of `length` frames; the last may be shorter.

    Example:
        >>> [chunk.shape[2] for chunk in rechunk([torch.zeros(1, 3, 5, 1, 1), torch.zeros(1, 3, 2, 1, 1)], 3)]
        [3, 3, 1]
    """
    rest: Tensor | None = None
    for block in blocks:
        rest = block if rest is None else torch.cat([rest, block], dim=2)
        while rest.shape[2] >= length:
            yield rest[:, :, :length]
            rest = rest[:, :, length:]
    if rest is not None and rest.shape[2]:
        yield rest


def pad_clip(clip: Tensor, length: int) -> Tensor:
    """Pads a clip (b, c, t, h, w) to `length` frames by repeating its last frame."""
    missing = length - clip.shape[2]
    return torch.cat([clip, clip[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
