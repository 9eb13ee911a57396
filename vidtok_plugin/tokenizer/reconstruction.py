"""Reconstructing a video file of any length as a stream, a few frames in memory at a time."""

from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.objective import frame_psnr
from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.writing import VideoWriter

CHUNK = 32  # frames read and encoded at once; a non-causal model sees no further


@torch.no_grad()
def reconstruct_video(tokenizer: VidTok, source: Path, output: Path) -> float:
    """Writes `source` as `tokenizer` reconstructs it; -> its mean PSNR in dB.

    Causal models run as one stream over the whole file; others on clips of 32 frames.
    """
    info = probe(source)
    psnr: list[Tensor] = []
    waiting: list[Tensor] = []  # originals whose reconstruction is still to come
    encoder = tokenizer.encoder_stream() if tokenizer.causal else None
    decoder = tokenizer.decoder_stream() if tokenizer.causal else None
    with VideoWriter(output, fps=info.fps) as writer:

        def emit(frames: Tensor) -> None:
            original = torch.cat(waiting, dim=2)
            frames = frames[:, :, : original.shape[2]].clamp(-1, 1)
            waiting[:] = [original[:, :, frames.shape[2] :]]
            if frames.shape[2]:
                psnr.append(frame_psnr(original[:, :, : frames.shape[2]], frames)[0])
                pixels = ((frames[0] + 1) * 127.5).round().to(torch.uint8)
                writer.write(pixels.permute(1, 2, 3, 0).cpu().numpy())

        for start in range(0, info.num_frames, CHUNK):
            clip = torch.from_numpy(read_frames(source, range(start, min(start + CHUNK, info.num_frames))))
            video = clip.permute(3, 0, 1, 2)[None].to(tokenizer.device).float() / 127.5 - 1
            waiting.append(video)
            if encoder is None or decoder is None:
                emit(tokenizer(video).reconstruction)
            else:
                emit(decoder.push(encoder.push(video).latents))
        if encoder is not None and decoder is not None:
            emit(decoder.push(encoder.flush().latents))
            emit(decoder.flush())
    return float(torch.cat(psnr).mean())
