"""The adapter that writes a store: loaded from a model, with latent statistics that all writers share."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.saving import ADAPTER_FILES, CONFIG_FILE, load_statistics, save_statistics
from vidtok_plugin.common.atomic_files import atomic_create
from vidtok_plugin.common.damage import DAMAGE
from vidtok_plugin.common.hub_source import PLAIN, hub_folder, is_repository
from vidtok_plugin.common.paths import as_path, user_path
from vidtok_plugin.common.remote import is_url
from vidtok_plugin.common.url_path import local_copy
from vidtok_plugin.store.metadata import METADATA_FILE, read_metadata
from vidtok_plugin.store.sources import Source
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.weights.weights import SAVED_FILES
from vidtok_plugin.video.video_file import as_episode

logger = logging.getLogger(__name__)

CLIPS = 64
CLIP_STEPS = 5  # latent steps of a clip: 17 frames at a temporal factor of 4
ADAPTER_REMEDY = "run `vidtok-plugin tokenize` again, which writes it again"


def load_adapter(
    model: str | Path, *, preset: str | None = None, patch_size: tuple[int, int] | None = None
) -> TokenizerAdapter:
    """The adapter of a folder that `TokenizerAdapter.save_pretrained` wrote, or a new one of a tokenizer.

    model: the folder, also in a repository on the hub, or a source that `VidTok.from_pretrained` accepts.
    preset: of a bare weights file.
    patch_size: rows and columns of latents in a patch; by default (1, 1), or the saved adapter's.

    Raises:
        ValueError: a preset, or another patch size, for a saved adapter.
    """
    if is_url(str(model)):
        model = local_copy(user_path(model))
    elif is_repository(model) and not user_path(model).exists():
        files = (*ADAPTER_FILES, *SAVED_FILES)  # of either
        model = hub_folder("load_adapter", str(model), PLAIN, wanted=files, needed=())
    if not (user_path(model) / CONFIG_FILE).is_file():
        return TokenizerAdapter(VidTok.from_pretrained(model, preset=preset), patch_size=(1, *(patch_size or (1, 1))))
    adapter = TokenizerAdapter.from_pretrained(model)
    own = adapter.config.patch_size[1:]
    if preset is not None:
        raise ValueError(
            f"load_adapter: {model} is an adapter's folder, which contains its architecture; leave preset out."
        )
    if patch_size not in (None, own):
        raise ValueError(
            f"load_adapter: {model} is an adapter's folder, whose patch size is {own}, got {patch_size}; leave it out, "
            "or give the tokenizer's folder."
        )
    return adapter


def stored_adapter(store: str | Path) -> TokenizerAdapter:
    """The adapter that wrote a store, compared with the hash in the store's metadata.

    Raises:
        FileNotFoundError: the store has no adapter.
        ValueError: the adapter is damaged or another one.
    """
    metadata = read_metadata(store)
    folder = as_path(store) / metadata.adapter_folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"TokenStore: {folder}, the adapter that wrote the tokens, is missing; {ADAPTER_REMEDY}."
        )
    try:
        return _load_with_hash(local_copy(folder), metadata.adapter_hash)
    except (ValueError, FileNotFoundError) as error:
        problem = str(error).rstrip(".")
        raise ValueError(f"TokenStore: the adapter in {folder} is damaged ({problem}); {ADAPTER_REMEDY}.") from error


def adapter_problem(folder: Path, expected: str) -> str | None:
    """What is wrong with a saved adapter that must have this hash; None if it is intact."""
    try:
        _load_with_hash(folder, expected)
    except (*DAMAGE, SafetensorError) as error:
        return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    return None


def _load_with_hash(folder: Path, expected: str) -> TokenizerAdapter:
    adapter = TokenizerAdapter.from_pretrained(folder)
    if adapter.hash != expected:
        raise ValueError(f"its hash is {adapter.hash}, not {expected} as in {METADATA_FILE}")
    return adapter


def agree_on_statistics(
    adapter: TokenizerAdapter, videos: Sequence[Source], store: str | Path, *, clips: int = CLIPS
) -> None:
    """Give a KL adapter without latent statistics those of the store; leave any other adapter unchanged.

    If the store has none for these weights yet, fit them on `clips` clips, spread evenly over the videos. All of
    several processes use the statistics of the first, since each would compute slightly different last digits.
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
        save_statistics(folder, {name: tensor.cpu() for name, tensor in adapter.state_dict().items()})

    atomic_create(folder, fit)
    adapter.load_state_dict(load_statistics(folder, adapter.tokenizer.latent_channels))


def _clips(adapter: TokenizerAdapter, videos: Sequence[Source], count: int) -> Iterator[Tensor]:
    """Clips (1, 3, t, h, w) uint8; the same ones in every process."""
    rng = np.random.default_rng(0)
    for i in range(count):
        episode = as_episode(videos[i * len(videos) // count])
        length = min(adapter.tokenizer.num_frames(CLIP_STEPS), episode.num_frames)
        start = int(rng.integers(episode.num_frames - length + 1))
        frames = torch.from_numpy(episode.read(range(start, start + length)))
        yield rearrange(frames, "t h w c -> 1 c t h w").to(adapter.tokenizer.device)
