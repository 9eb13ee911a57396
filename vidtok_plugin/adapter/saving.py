"""An adapter's settings, and the folder in which it is saved.

FOLDER/tokenizer/                       the tokenizer, as `VidTok.save_pretrained` writes it
FOLDER/adapter.yaml                     `AdapterConfig`
FOLDER/adapter.sha256                   `TokenizerAdapter.hash`, with which what is loaded is compared
FOLDER/latent_statistics.safetensors    of a KL model: latent_mean and latent_std, (c,) each
FOLDER/README.md                        the model card, in a folder that is not part of another
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vidtok_plugin.adapter.patches import check_statistics
from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.checkpoint_files import read_safetensors, write_safetensors
from vidtok_plugin.common.config import to_yaml
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.saved_config import load_saved_config
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.weights.weights import SAVED_FILES

TOKENIZER_FOLDER = "tokenizer"
CONFIG_FILE = "adapter.yaml"
HASH_FILE = "adapter.sha256"
STATISTICS_FILE = "latent_statistics.safetensors"
OF_TOKENIZER = tuple(f"{TOKENIZER_FOLDER}/{name}" for name in SAVED_FILES)
ADAPTER_FILES = (CONFIG_FILE, HASH_FILE, STATISTICS_FILE, *OF_TOKENIZER)
NEEDED_FILES = (CONFIG_FILE, *OF_TOKENIZER)  # earlier versions wrote no hash, and FSQ has no statistics


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a `TokenizerAdapter`."""

    special_tokens: tuple[str, ...] = ("bos", "eos", "pad")
    patch_size: tuple[int, int, int] = (1, 1, 1)  # latents in a patch: time, rows, columns

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(
                f"TokenizerAdapter: patch_size must be 1 in time, and 1 or more in rows and columns, "
                f"got {self.patch_size}."
            )


def save_adapter(
    folder: Path, tokenizer: VidTok, config: AdapterConfig, statistics: Mapping[str, Tensor], adapter_hash: str
) -> None:
    """Write an adapter's folder; `statistics` is empty for a discrete adapter.

    All files are written before the first replaces that of an earlier adapter, which a full disk therefore spares.
    The hash comes last but for the config: whatever is interrupted then differs from its hash, or has no config.
    """
    with atomic_write(folder / CONFIG_FILE) as config_file, atomic_write(folder / HASH_FILE) as hash_file:
        config_file.write_text(to_yaml(config), encoding="utf-8")
        hash_file.write_text(f"{adapter_hash}\n", encoding="utf-8")
        with _statistics_file(folder, statistics):
            tokenizer.save_pretrained(folder / TOKENIZER_FOLDER, card=False)


def check_hash(folder: Path, adapter_hash: str) -> None:
    """Compare the hash of an adapter that was loaded from a folder with the one that was saved there.

    Folders that an earlier version wrote have none.

    Raises:
        ValueError: they differ.
    """
    file = folder / HASH_FILE
    if not file.exists():
        return
    saved = file.read_bytes()[:100].decode("ascii", "replace").strip() if file.is_file() else "none"
    if saved != adapter_hash:
        raise ValueError(
            f"TokenizerAdapter: {folder} must hold the adapter that was saved there, {saved} in {HASH_FILE}, got "
            f"{adapter_hash}: a file was damaged or changed; save the adapter again, or remove {HASH_FILE} if the "
            "change was meant."
        )


def save_statistics(folder: Path, statistics: Mapping[str, Tensor]) -> None:
    with _statistics_file(folder, statistics):
        pass


@contextmanager
def _statistics_file(folder: Path, statistics: Mapping[str, Tensor]) -> Iterator[None]:
    """Writes the statistics, if there are any, and puts them in place at the end."""
    if not statistics:
        yield
        return
    with atomic_write(folder / STATISTICS_FILE) as partial:
        write_safetensors(partial, statistics)
        yield


def load_statistics(folder: Path, channels: int) -> dict[str, Tensor]:
    """The latent statistics that `save_statistics` wrote.

    Raises:
        FileNotFoundError: they are missing.
        ValueError: they are damaged, or not finite means and positive standard deviations of so many channels.
    """
    path = folder / STATISTICS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"TokenizerAdapter: {folder} has no {STATISTICS_FILE}; fetch or write the folder again."
        )
    statistics = read_safetensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in statistics.items()}
    if shapes != dict.fromkeys(("latent_mean", "latent_std"), (channels,)):
        raise ValueError(
            f"TokenizerAdapter: {path} must hold latent_mean and latent_std of {channels} channels, got {shapes}; "
            "fetch or write the folder again."
        )
    check_statistics(statistics, str(path))
    return statistics


def load_adapter_parts(folder: Path) -> tuple[VidTok, AdapterConfig, dict[str, Tensor]]:
    """The tokenizer, the settings and the latent statistics in an adapter's folder.

    Raises:
        FileNotFoundError: `save_adapter` did not write this folder.
        ValueError: a file in it is damaged, or has NaN, infinite or huge values.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"TokenizerAdapter: {folder} has no {CONFIG_FILE}; give a folder that save_pretrained wrote."
        )
    config = load_saved_config(AdapterConfig, folder / CONFIG_FILE)
    tokenizer = VidTok.from_pretrained(folder / TOKENIZER_FOLDER)
    statistics = load_statistics(folder, tokenizer.latent_channels) if tokenizer.codebook_size is None else {}
    return tokenizer, config, statistics
