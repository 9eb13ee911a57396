"""A video file and its reconstruction side by side, a few frames in memory at a time."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.video.reading import VideoInfo, probe, read_in_order

READ_FRAMES = 32  # decoded at once
RESIZED_FRAMES = 8  # resized at once
STREAM_FRAMES = 16  # encoded at once of a video that is streamed


class UnreadableError(ValueError):
    """A video file is damaged, unlike settings that don't fit."""


def probe_rated(path: Path) -> VideoInfo:
    """`probe`, with an UnreadableError for what is no video, or tells no frame rate."""
    try:
        info = probe(path)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    if not 0 < info.fps < math.inf:
        raise UnreadableError(f"Video {path} cannot be sampled: it tells no frame rate; re-encode or remove it.")
    return info


def sampled(info: VideoInfo, fps: float) -> range:
    """The frames that are taken of a video: every k-th, k its rate over `fps`, rounded, and at least 1."""
    return range(0, info.num_frames, max(1, round(info.fps / fps)))


def read_scaled(path: Path, step: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Every `step`-th frame (1, 3, t, size, size) in [-1, 1] of a video, in blocks; an UnreadableError if damaged."""
    blocks = read_in_order(path, READ_FRAMES)
    seen = 0
    while True:
        try:
            block = next(blocks, None)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        if block is None:
            return
        frames = torch.from_numpy(block[-seen % step :: step])
        seen += len(block)
        if len(frames):
            parts = [resize_and_crop(part.to(device), size) for part in frames.split(RESIZED_FRAMES)]
            yield rearrange(torch.cat(parts), "t c h w -> 1 c t h w")


def resize_and_crop(frames: Tensor, size: int) -> Tensor:
    """uint8 frames (t, h, w, 3) -> (t, 3, size, size) in [-1, 1], scaled as for the published figures.

    That is torchvision's Resize of the short side, antialiased, and CenterCrop. (Training clips are scaled by area,
    which is faster and leaves them a little sharper.)
    """
    h, w = frames.shape[1:3]
    scaled = size * h // min(h, w), size * w // min(h, w)
    x = rearrange(frames, "t h w c -> t c h w").float() / 127.5 - 1
    x = interpolate(x, scaled, mode="bilinear", align_corners=False, antialias=True)
    top, left = (round((length - size) / 2) for length in scaled)
    return x[:, :, top : top + size, left : left + size]


def clip_pairs(tokenizer: VidTok, frames: Iterable[Tensor], clip_frames: int) -> Iterator[Tensor]:
    """Clips and their reconstructions (2, 3, clip_frames, h, w), each clip on its own, the last one completed."""
    for part in in_parts(frames, clip_frames):
        clip = completed(part, clip_frames)
        yield torch.cat([clip, tokenizer(clip).reconstruction.float()])


def stream_pairs(tokenizer: VidTok, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """A video and its reconstruction (2, 3, t, h, w) as one stream, in parts of any length as they come."""
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    waiting: Tensor | None = None  # originals whose reconstruction is still to come
    for part in in_parts(frames, STREAM_FRAMES):
        waiting = part if waiting is None else torch.cat([waiting, part], dim=2)
        made = decoder.push(encoder.push(part).latents).float()
        yield torch.cat([waiting[:, :, : made.shape[2]], made])
        waiting = waiting[:, :, made.shape[2] :]
    assert waiting is not None  # a video has frames
    made = torch.cat([decoder.push(encoder.flush().latents), decoder.flush()], dim=2).float()
    yield torch.cat([waiting, made[:, :, : waiting.shape[2]]])


def in_parts(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Blocks (b, c, t, h, w) of any lengths as parts of `length` frames, the last perhaps shorter.

    Example:
        >>> [part.shape[2] for part in in_parts([torch.zeros(1, 3, 5, 1, 1), torch.zeros(1, 3, 2, 1, 1)], 3)]
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


def completed(clip: Tensor, length: int) -> Tensor:
    """The clip (b, c, t, h, w) with copies of its last frame, `length` frames in all."""
    missing = length - clip.shape[2]
    return torch.cat([clip, clip[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
