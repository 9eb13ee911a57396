"""The adapter that writes a token store: loaded by name, and with latent statistics that all its writers agree on."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtok_plugin.adapter.adapter import CONFIG_FILE, STATISTICS_FILE, TokenizerAdapter
from vidtok_plugin.common.atomic_files import atomic_create
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.video.reading import probe, read_frames

logger = logging.getLogger(__name__)

CLIPS = 64
CLIP_STEPS = 5  # latent steps of a clip, 17 frames at a factor of 4


def load_adapter(
    model: str | Path, *, preset: str | None = None, patch_size: tuple[int, int] | None = None
) -> TokenizerAdapter:
    """An adapter of `model`: a folder written by `TokenizerAdapter.save_pretrained`, or what `VidTok.from_pretrained`
    takes.

    patch_size: rows and columns of latents that make a patch; (1, 1) by default.

    Raises:
        ValueError: a patch size or a preset that is not that of the adapter's folder.
    """
    if not (Path(model) / CONFIG_FILE).is_file():
        return TokenizerAdapter(VidTok.from_pretrained(model, preset=preset), patch_size=(1, *(patch_size or (1, 1))))
    adapter = TokenizerAdapter.from_pretrained(model)
    own = adapter.config.patch_size[1:]
    if preset is not None:
        raise ValueError(
            f"load_adapter: {model} is an adapter's folder, which tells its own architecture; leave preset out."
        )
    if patch_size not in (None, own):
        raise ValueError(
            f"load_adapter: {model} is an adapter's folder, whose patch size is {own}, got {patch_size}; leave it out, "
            "or name the tokenizer's folder."
        )
    return adapter


def agree_on_statistics(
    adapter: TokenizerAdapter, videos: Sequence[Path], store: str | Path, *, clips: int = CLIPS
) -> None:
    """Give a KL adapter that has no latent statistics those of the store; nothing for others.

    If the store has none for these weights, they are fitted on `clips` clips, taken evenly from the videos. Of several
    processes that do so, all get those of the first one: what is computed elsewhere may differ in the last digit.
    """
    if clips < 1:
        raise ValueError(f"agree_on_statistics: clips must be at least 1, got {clips}.")
    if adapter.kind == "discrete" or adapter.has_latent_stats:
        return
    folder = Path(store) / f"statistics_{adapter.token_hash[:16]}"

    def fit(folder: Path) -> None:
        logger.info("%s: fitting latent statistics on %d clips", store, clips)
        adapter.fit_latent_stats(_clips(adapter, videos, clips))
        folder.mkdir()
        save_file({name: tensor.cpu() for name, tensor in adapter.state_dict().items()}, folder / STATISTICS_FILE)

    atomic_create(folder, fit)
    adapter.load_state_dict(load_file(folder / STATISTICS_FILE))


def _clips(adapter: TokenizerAdapter, videos: Sequence[Path], count: int) -> Iterator[Tensor]:
    """Clips (1, 3, t, h, w) uint8 from places that are the same in every process."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = videos[i * len(videos) // count]
        there = probe(path).num_frames
        length = min(adapter.tokenizer.num_frames(CLIP_STEPS), there)
        start = int(rng.integers(there - length + 1))
        frames = torch.from_numpy(read_frames(path, range(start, start + length)))
        yield rearrange(frames, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
