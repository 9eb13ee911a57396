"""`vidtok-plugin push`: the folder of a saved tokenizer or adapter, as it is, to the Hugging Face hub."""

from pathlib import Path

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.card import adapter_facts
from vidtok_plugin.adapter.saving import ADAPTER_FILES
from vidtok_plugin.adapter.saving import CONFIG_FILE as ADAPTER_CONFIG
from vidtok_plugin.common.hub_push import PushOptions, push_folder
from vidtok_plugin.common.model_card import card_text
from vidtok_plugin.common.saved_config import read_saved_config
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.weights.card import tokenizer_facts
from vidtok_plugin.tokenizer.weights.weights import CONFIG_FILE, SAVED_FILES


def push_saved(folder: Path, repository: str, options: PushOptions) -> str:
    """Push a folder that `save_pretrained` wrote, after it was loaded as a check; see `push_folder`.

    Raises:
        FileNotFoundError: there is no such folder, or a file in it is missing.
        ValueError: it is damaged, or holds a world model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"push: there is no folder {folder}; check the path.")
    if (folder / ADAPTER_CONFIG).is_file():
        adapter = TokenizerAdapter.from_pretrained(folder)
        facts, files = adapter_facts(adapter.tokenizer, adapter.config), ADAPTER_FILES
    elif (folder / CONFIG_FILE).is_file() and "world_model" in read_saved_config(folder / CONFIG_FILE):
        raise ValueError(f"push: {folder} holds a world model; push it by `world-model push`.")
    else:
        tokenizer = VidTok.from_pretrained(folder)
        facts, files = tokenizer_facts(tokenizer.architecture, tokenizer.state_dict()), SAVED_FILES
    return push_folder(folder, repository, options, replaces=files, card=card_text(facts))
