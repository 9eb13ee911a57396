"""An adapter's settings, and the folder in which it is saved.

FOLDER/tokenizer/                       the tokenizer, as `VidTok.save_pretrained` writes it
FOLDER/adapter.yaml                     `AdapterConfig`
FOLDER/latent_statistics.safetensors    of a KL model: latent_mean and latent_std, (c,) each
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtok_plugin.common.config import load_config, to_yaml
from vidtok_plugin.tokenizer.model import VidTok

TOKENIZER_FOLDER = "tokenizer"
CONFIG_FILE = "adapter.yaml"
STATISTICS_FILE = "latent_statistics.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a `TokenizerAdapter`."""

    special_tokens: tuple[str, ...] = ("bos", "eos", "pad")
    patch_size: tuple[int, int, int] = (1, 1, 1)  # latents in a patch: time, rows, columns

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(
                f"TokenizerAdapter: patch_size must be 1 in time, and 1 or more in rows and columns, "
                f"got {self.patch_size}."
            )


def save_adapter(folder: Path, tokenizer: VidTok, config: AdapterConfig, statistics: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder; `statistics` is empty for a discrete adapter."""
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    (folder / CONFIG_FILE).write_text(to_yaml(config))
    if statistics:
        save_statistics(folder, statistics)


def save_statistics(folder: Path, statistics: Mapping[str, Tensor]) -> None:
    save_file(dict(statistics), folder / STATISTICS_FILE)


def load_statistics(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / STATISTICS_FILE)


def load_adapter_parts(folder: Path) -> tuple[VidTok, AdapterConfig, dict[str, Tensor]]:
    """The tokenizer, the settings and the latent statistics in an adapter's folder.

    Raises:
        FileNotFoundError: `save_adapter` did not write this folder.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"TokenizerAdapter: {folder} has no {CONFIG_FILE}; give a folder that save_pretrained wrote."
        )
    config = load_config(AdapterConfig, [folder / CONFIG_FILE])
    tokenizer = VidTok.from_pretrained(folder / TOKENIZER_FOLDER)
    statistics = load_statistics(folder) if tokenizer.codebook_size is None else {}
    return tokenizer, config, statistics
