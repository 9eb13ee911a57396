"""`world-model push`: a world, with its adapter and its prompts, to the Hugging Face hub."""

from pathlib import Path

from vidtok_plugin.common.hub_push import PushOptions, push_folder
from vidtok_plugin.common.model_card import card_text
from world_model.cards import world_facts
from world_model.rollout.worlds import load_world, world_folder
from world_model.weights import WORLD_FILES


def push_world(source: str | Path, repository: str, options: PushOptions) -> str:
    """Push a world's folder as it is, after it was loaded as a check; see `push_folder`.

    source: for `load_world`.

    Raises:
        FileNotFoundError: there is no such folder, or a file in it is missing.
        ValueError: it is damaged, or the adapter is another one than the world model's.
    """
    model, adapter = load_world(source, device="cpu")
    card = card_text(world_facts(model.config, model.state_dict(), adapter))
    return push_folder(world_folder(source), repository, options, replaces=WORLD_FILES, card=card)
