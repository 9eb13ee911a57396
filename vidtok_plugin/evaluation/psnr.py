"""PSNR of a tokenizer on held-out clips, and of a trivial baseline."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.video.reading import read_frames


@torch.no_grad()
def reconstruction_psnr(tokenizer: VidTok, clips: Iterable[Tensor]) -> float:
    """Mean PSNR in dB over all frames of clips (3, t, h, w) in [-1, 1], each reconstructed on its own."""
    psnr = []
    for clip in clips:
        video = clip[None].to(tokenizer.device)
        psnr.append(frame_psnr(video, tokenizer(video).reconstruction).flatten())
    return float(torch.cat(psnr).mean())


def mean_frame_psnr(train: Sequence[Path], clips: Iterable[Tensor], *, every: int = 16) -> float:
    """The baseline: the mean frame of the training videos (over every `every`-th frame) as the reconstruction."""
    total, count = torch.zeros(()), 0
    for path in train:
        frames = torch.from_numpy(read_frames(path))[::every].float() / 127.5 - 1
        total, count = total + frames.sum(0), count + len(frames)
    mean = (total / count).permute(2, 0, 1)[None, :, None]
    return float(torch.cat([frame_psnr(clip[None], mean.expand_as(clip[None])).flatten() for clip in clips]).mean())
