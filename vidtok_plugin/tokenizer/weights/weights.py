"""Loading and saving VidTok weights: finding a source, its architecture, and loading strictly."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.checkpoint_files import write_safetensors
from vidtok_plugin.common.config import to_yaml
from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.hub_source import PLAIN, HubOptions, hub_folder, is_repository
from vidtok_plugin.common.model_card import Cards, writing_card
from vidtok_plugin.common.paths import as_path, user_path
from vidtok_plugin.common.saved_config import checked_config, read_saved_config
from vidtok_plugin.common.state_dict import M, build_with_weights
from vidtok_plugin.common.url_path import local_copy
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.encoder_decoder import Decoder, Encoder
from vidtok_plugin.tokenizer.presets import get_preset, presets
from vidtok_plugin.tokenizer.weights.card import tokenizer_facts
from vidtok_plugin.tokenizer.weights.checkpoints import Averaging, Weights, read_weights
from vidtok_plugin.tokenizer.weights.hub import published_checkpoint

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
SAVED_FILES = (CONFIG_FILE, WEIGHTS_FILE)  # of a tokenizer


def save(folder: str | Path, architecture: Architecture, state_dict: Mapping[str, Tensor], card: Cards = None) -> None:
    """Writes a folder that `load` reads, `model.safetensors` and `config.yaml`, and its card."""
    folder = as_path(folder)
    with (
        writing_card(folder, tokenizer_facts(architecture, state_dict), card),
        atomic_write(folder / CONFIG_FILE) as config_file,
        atomic_write(folder / WEIGHTS_FILE) as weights_file,
    ):
        config_file.write_text(to_yaml(architecture), encoding="utf-8")
        write_safetensors(weights_file, state_dict)


def load(
    source: str | Path,
    preset: str | None,
    *,
    averaging: Averaging | None = None,
    options: HubOptions = PLAIN,
    strip_objects: bool = False,
) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and tokenizer weights of `source`; see `VidTok.from_pretrained` and `read_weights`."""
    if averaging not in (None, "ema", "raw"):
        raise ValueError(f"VidTok: weights must be 'ema' or 'raw', got {averaging!r}.")
    if preset is not None:
        get_preset(preset)  # fail on a misspelled name before anything is downloaded or read
    found = _find(source, averaging, options, strip_objects)
    return choose_architecture(found, preset, source), found.state_dict


def choose_architecture(found: Weights, preset: str | None, source: str | Path) -> Architecture:
    """The architecture stored in `source`, else that of `preset`; a ValueError if they differ or neither is given."""
    named = None if preset is None else get_preset(preset).architecture
    if found.architecture is None:
        if named is None:
            raise ValueError(
                f"VidTok: {source} holds only weights; give its architecture by preset=NAME "
                f"(`vidtok-plugin presets` lists them){_guess(found.state_dict)}."
            )
        return named
    if named not in (None, found.architecture):
        raise ValueError(
            f"VidTok: {source} stores its architecture, and it is not that of preset={preset!r}; leave preset out "
            "(preset=null in a config)."
        )
    return found.architecture


def _find(source: str | Path, averaging: Averaging | None, options: HubOptions, strip_objects: bool) -> Weights:
    path, name = local_copy(user_path(source)), str(source)
    published = not path.exists() and name in presets() and presets()[name].checkpoint is not None
    if published:
        replace(options, revision=None).refuse("VidTok", name)
    elif not path.exists() and is_repository(source):
        path = hub_folder("VidTok", name, options, wanted=SAVED_FILES, needed=SAVED_FILES)
    else:
        options.refuse("VidTok", name, "published names and hub repositories")
    if path.is_dir():
        return _load_folder(path, averaging)
    if path.is_file():
        return read_weights(path, averaging, strip_objects=strip_objects)
    if published:
        checkpoint = published_checkpoint(presets()[name], options)
        found = read_weights(checkpoint, averaging, strip_objects=strip_objects)
        return replace(found, architecture=choose_architecture(found, name, checkpoint))
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"VidTok: there is no file or folder {name!r}; check the path.")
    if name not in presets():
        raise ValueError(
            f"VidTok: there is no file, folder or preset {name!r}; the nearest preset is {nearest(name, presets())!r} "
            "(`vidtok-plugin presets` lists all)."
        )
    return _load_folder(Path(str(files("vidtok_plugin") / "pretrained" / name)), averaging)


def build_strictly(build: Callable[[], M], state_dict: Mapping[str, Tensor], source: str | Path) -> M:
    """The model that `build` makes, with these weights; the ValueError for those of another architecture names matching
    presets."""
    return build_with_weights(build, state_dict, who="VidTok", source=source, hint=lambda: _guess(state_dict))


def _load_folder(folder: Path, averaging: Averaging | None) -> Weights:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"VidTok: {folder} has no {name}; it was not written by save_pretrained (`vidtok-plugin convert` "
                "converts a diffusers folder)."
            )
    values = read_saved_config(folder / CONFIG_FILE)
    if "world_model" in values:
        raise ValueError(f"VidTok: {folder} holds a world model; its tokenizer is in its folder adapter/tokenizer.")
    architecture = checked_config(Architecture, values, folder / CONFIG_FILE)
    return replace(read_weights(folder / WEIGHTS_FILE, averaging), architecture=architecture)


def _guess(state_dict: Mapping[str, Tensor]) -> str:
    """A hint at the presets with these names and shapes of weights, or nearly these."""
    found = _shapes(state_dict.items())
    # v1.1 has the same weights as v1.0 and differs in padding.
    own = {name: _shapes_of(replace(preset.architecture, version="1.0")) for name, preset in presets().items()}
    differing = {name: len(found ^ shapes) for name, shapes in own.items()}
    fewest = min(differing.values())
    if fewest > len(found) / 10:
        return ""
    names = [name for name, count in differing.items() if count == fewest]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"; their shapes {'are closest to' if fewest else 'match'} {', '.join(names[:4])}{more}"


@cache
def _shapes_of(architecture: Architecture) -> frozenset[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        # Only these have weights; the regularizers have none.
        network = nn.ModuleDict({"encoder": Encoder(architecture), "decoder": Decoder(architecture)})
    return _shapes(network.state_dict().items())


def _shapes(state_dict: Iterable[tuple[str, Tensor]]) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tuple(tensor.shape)) for name, tensor in state_dict)
