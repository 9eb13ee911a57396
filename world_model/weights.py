"""Folders that hold a world model: model.safetensors, config.yaml, and the adapter whose tokens it speaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok_plugin.common.config import load_config, to_yaml
from world_model.architecture import WorldModelConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What config.yaml says; `token_hash` is that of the adapter, whether it is in the folder or not."""

    world_model: WorldModelConfig
    token_hash: str | None = None


def save(folder: Path, contents: Contents, weights: Mapping[str, Tensor]) -> None:
    """Write config and weights into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(to_yaml(contents))


def load(folder: Path) -> tuple[Contents, dict[str, Tensor]]:
    """Read what `save` wrote; the adapter is read by `TokenizerAdapter.from_pretrained(folder /
    ADAPTER_FOLDER)`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"WorldModel: there is no folder {folder}; check the path.")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"WorldModel: {folder} has no {name}; give a folder that save_pretrained wrote.")
    if "world_model:" not in (folder / CONFIG_FILE).read_text():
        raise ValueError(
            f"WorldModel: {folder} holds a model of another kind (its {CONFIG_FILE} has no key world_model); "
            "give the folder of a world model."
        )
    contents = load_config(Contents, [folder / CONFIG_FILE])
    try:
        return contents, load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"WorldModel: {folder / WEIGHTS_FILE} is no whole safetensors file ({error}).") from error


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill `model`; missing, unexpected and misshapen weights are a ValueError that names the first few."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in own if name not in theirs]
    problems += [f"{name} is unexpected" for name in theirs if name not in own]
    problems += [
        f"{name} has the shape {shape} for {own[name]}"
        for name, shape in theirs.items()
        if name in own and own[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"WorldModel: the weights in {source} are those of another architecture: "
            f"{'; '.join(problems[:3])}{more}; use the config that they were trained with."
        )
    model.load_state_dict(dict(weights))
