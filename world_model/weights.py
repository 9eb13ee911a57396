"""Folders of saved world models: model.safetensors, config.yaml, the adapter of its tokens, and a card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vidtok_plugin.adapter.saving import ADAPTER_FILES
from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.checkpoint_files import read_safetensors, write_safetensors
from vidtok_plugin.common.config import to_yaml
from vidtok_plugin.common.model_card import Cards, writing_card
from vidtok_plugin.common.saved_config import checked_config, read_saved_config
from world_model.architecture import WorldModelConfig
from world_model.cards import world_facts

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
ADAPTER_FOLDER = "adapter"
PROMPTS_FOLDER = "prompts"
SAVED_FILES = (CONFIG_FILE, WEIGHTS_FILE)  # of a world model alone
WORLD_FILES = (
    *SAVED_FILES,
    *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES),
    *(f"{PROMPTS_FOLDER}/*.{suffix}" for suffix in ("mp4", "npy", "json")),
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The content of config.yaml. `token_hash` is that of the adapter, whether it is in the folder or not."""

    world_model: WorldModelConfig
    token_hash: str | None = None


def write_folder(
    folder: Path,
    contents: Contents,
    weights: Mapping[str, Tensor],
    adapter: "TokenizerAdapter | None" = None,
    card: Cards = None,
) -> None:
    """Write config, weights, the adapter and a card; all are written before the first replaces an earlier one."""
    facts = world_facts(contents.world_model, weights, adapter)
    with (
        writing_card(folder, facts, card),
        atomic_write(folder / CONFIG_FILE) as config_file,
        atomic_write(folder / WEIGHTS_FILE) as weights_file,
    ):
        config_file.write_text(to_yaml(contents), encoding="utf-8")
        write_safetensors(weights_file, weights)
        if adapter is not None:
            adapter.save_pretrained(folder / ADAPTER_FOLDER, card=False)


def read_folder(folder: Path) -> tuple[Contents, dict[str, Tensor]]:
    """Read what `write_folder` wrote. `TokenizerAdapter.from_pretrained(folder / ADAPTER_FOLDER)` reads the adapter.

    Raises:
        FileNotFoundError: the folder, its config or its weights are missing.
        ValueError: the folder holds a model of another kind, or its weights are damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"WorldModel: there is no folder {folder}; check the path.")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"WorldModel: {folder} has no {name}; give a folder that save_pretrained wrote.")
    values = read_saved_config(folder / CONFIG_FILE)
    if "world_model" not in values:
        raise ValueError(
            f"WorldModel: {folder} holds a model of another kind (its {CONFIG_FILE} has no key world_model); "
            "give the folder of a world model."
        )
    contents = checked_config(Contents, values, folder / CONFIG_FILE)
    return contents, read_safetensors(folder / WEIGHTS_FILE)
