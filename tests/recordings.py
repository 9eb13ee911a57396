"""Recorded episodes of noise, and tokenizers small enough to encode them quickly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtok_plugin import VidTok
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.video.episodes import save_episode_files
from vidtok_plugin.video.writing import write_video


def tiny_adapter(seed: int = 0) -> TokenizerAdapter:
    """An adapter for codes, with random weights."""
    torch.manual_seed(seed)
    return TokenizerAdapter(VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), fsq_levels=(4, 3)))


def tiny_kl_adapter(seed: int = 0, patch_size: tuple[int, int, int] = (1, 1, 1)) -> TokenizerAdapter:
    """An adapter for patches, with random weights and without latent statistics."""
    torch.manual_seed(seed)
    tokenizer = VidTok.from_preset("vidtok_kl_causal_488_4chn", ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    return TokenizerAdapter(tokenizer, patch_size=patch_size)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, with hidden ones, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_folder(root: Path, frames: Mapping[str, int]) -> Path:
    """Write episodes with the given names and numbers of frames; -> the folder."""
    for name, count in frames.items():
        write_episode(root / f"{name}.mp4", count)
    return root


def write_episode(path: Path, frames: int, *, size: int = 16, fps: float = 30, meta: Any = None) -> None:
    """Write a video of noise with random actions."""
    rng = np.random.default_rng(frames)
    write_video(path, rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8), fps=fps)
    space = {"kind": "discrete", "size": 3, "meanings": ["noop", "left", "right"]}
    save_episode_files(
        path, rng.integers(0, 3, frames), meta or {"fps": fps, "num_frames": frames, "action_space": space}
    )
