"""Reading and writing VidTok weights: folders, checkpoints, safetensors, the hub and the one that ships here."""

import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok_plugin.config import load_config, to_yaml
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, Preset, get_preset, presets

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
PARTS = ("encoder.", "decoder.")  # the keys of a tokenizer; a published checkpoint also has `loss.*`
LIGHTNING_PREFIX = "tokenizer."  # of our own training's checkpoints
# What the wrong bytes of a damaged checkpoint lead the unpickler to.
DAMAGE = (
    EOFError, RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error
)  # fmt: skip


def save(folder: str | Path, architecture: Architecture, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a folder that `load` reads: `model.safetensors` and `config.yaml`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(to_yaml(architecture))


def load(source: str | Path, preset: str | None) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and tokenizer weights of `source` (see `VidTok.from_pretrained`)."""
    named = None if preset is None else get_preset(preset).architecture
    architecture, state_dict = _find(source)
    if architecture is None:
        if named is None:
            raise ValueError(
                f"VidTok: {source} holds weights alone; name its architecture with preset=NAME "
                f"(`vidtok-plugin presets` lists them){_guess(state_dict)}."
            )
        return named, state_dict
    if named not in (None, architecture):
        raise ValueError(
            f"VidTok: {source} tells its own architecture, which is not that of preset={preset!r}; leave preset out."
        )
    return architecture, state_dict


def _find(source: str | Path) -> tuple[Architecture | None, dict[str, Tensor]]:
    """The weights of `source`, and its architecture if it tells it."""
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        state_dict, architecture = read_weights(path)
        return architecture, state_dict
    if str(source) in presets():
        found = get_preset(str(source))
        if found.checkpoint is None:
            return _load_folder(Path(str(files("vidtok_plugin") / "pretrained" / found.name)))
        return found.architecture, read_weights(download(found))[0]
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"VidTok: there is no file or folder {str(source)!r}.")
    get_preset(str(source))  # raises, naming the nearest
    raise AssertionError("unreachable: an unknown preset raises")


def download(preset: Preset) -> Path:
    """The published checkpoint of `preset`, from the hub's cache or the hub."""
    assert preset.checkpoint is not None
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, preset.checkpoint))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"VidTok: could not download {preset.name} ({type(error).__name__}); fetch "
            f"https://huggingface.co/{HUB_REPOSITORY}/resolve/main/{preset.checkpoint} by other means and pass the "
            f"file's path with preset={preset.name!r}."
        ) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], Architecture | None]:
    """The tokenizer's weights in a `.ckpt` or `.safetensors` file, and its architecture if the file tells it."""
    architecture = None
    if path.suffix == ".safetensors":
        try:
            state_dict = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"VidTok: {path} is no whole safetensors file ({error}); fetch it again.") from error
    else:
        checkpoint = _unpickle(path)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict", checkpoint), dict):
            raise ValueError(f"VidTok: {path} is no checkpoint: it holds no state_dict.")
        state_dict = checkpoint.get("state_dict", checkpoint)
        own = {
            name.removeprefix(LIGHTNING_PREFIX): tensor
            for name, tensor in state_dict.items()
            if isinstance(name, str) and name.startswith(LIGHTNING_PREFIX)
        }
        if own:
            state_dict = own
            architecture = _architecture_of(checkpoint, path)
    weights = {name: tensor for name, tensor in state_dict.items() if isinstance(name, str) and name.startswith(PARTS)}
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"VidTok: {path} holds no weights of a VidTok (tensors named encoder.* and decoder.*).")
    return weights, architecture


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Fills `model`; missing, unexpected and misshapen weights are a ValueError that names the first few."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state_dict]
    problems += [f"{name} is unexpected" for name in state_dict if name not in own]
    problems += [
        f"{name} has the shape {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in state_dict.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"VidTok: the weights in {source} are those of another architecture: "
            f"{'; '.join(problems[:3])}{more}{_guess(state_dict)}."
        )
    model.load_state_dict(state_dict)


def _architecture_of(checkpoint: dict[str, object], path: Path) -> Architecture | None:
    """What a checkpoint of our own training tells of its architecture."""
    settings = checkpoint.get("architecture")
    if not isinstance(settings, dict):
        return None
    try:
        return Architecture(**settings)
    except TypeError as error:
        raise ValueError(f"VidTok: {path} has settings that this version does not know ({error}).") from error


def _load_folder(folder: Path) -> tuple[Architecture, dict[str, Tensor]]:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"VidTok: {folder} has no {name}; it is no folder written by save_pretrained.")
    return load_config(Architecture, [folder / CONFIG_FILE]), read_weights(folder / WEIGHTS_FILE)[0]


def _unpickle(path: Path) -> object:
    with path.open("rb"):  # a file that may not be read says so itself
        pass
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"VidTok: {path} is no checkpoint of plain tensors and settings, or needs arbitrary code to be read, "
            "which is refused; convert it to safetensors in a trusted place."
        ) from error
    except DAMAGE as error:
        raise ValueError(f"VidTok: {path} is no whole checkpoint ({_first_line(error)}); fetch it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _guess(state_dict: Mapping[str, Tensor]) -> str:
    """A hint at the presets whose parameters have these names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    fitting = []
    for preset in presets().values():
        from vidtok_plugin.tokenizer.model import VidTok  # it imports this module

        with torch.device("meta"):
            model = VidTok(preset.architecture)
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes:
            fitting.append(preset.name)
    return f"; their shapes fit {', '.join(fitting)}" if fitting else ""


def architecture_settings(architecture: Architecture) -> dict[str, object]:
    """The architecture as plain values, to be put into a checkpoint."""
    return asdict(architecture)
