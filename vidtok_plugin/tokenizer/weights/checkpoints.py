"""A tokenizer's weights in a `.ckpt` or `.safetensors` file, published or of our training."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vidtok_plugin.common.checkpoint_files import read_checkpoint
from vidtok_plugin.common.saved_config import checked_config
from vidtok_plugin.tokenizer.architecture import Architecture

OBJECTIVE_PREFIX = "loss."  # of the objective's weights in a published checkpoint
TRAINING_PREFIX = "tokenizer."  # of the tokenizer's weights in a checkpoint of our training
RAW_WEIGHTS = "current_model_state"  # as Lightning's WeightAveraging names them; its `state_dict` has the average

Averaging = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A tokenizer's weights by their published names, and its architecture if the file stores it."""

    state_dict: dict[str, Tensor]
    architecture: Architecture | None


def read_weights(path: Path, averaging: Averaging | None = None, *, strip_objects: bool = False) -> Weights:
    """Reads the weights in a checkpoint or safetensors file; the content decides which it is.

    averaging: which weights to take from a checkpoint of our training; by default the averaged ones if it has them.
    strip_objects: drop objects other than tensors and plain values, instead of refusing a file that has any.

    Raises:
        ValueError: the file is damaged, of another kind, requires code to be run, or lacks the weights asked for.
    """
    content = read_checkpoint(path, strip_objects=strip_objects)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict", content), dict):
        raise ValueError(f"VidTok: {path} is not a checkpoint of a VidTok: it has no state_dict.")
    state_dict = content.get("state_dict", content)
    architecture = None
    if any(name.startswith(TRAINING_PREFIX) for name in _names(state_dict)):
        if averaging == "ema" and RAW_WEIGHTS not in content:
            raise ValueError(f"VidTok: {path} has no averaged weights (weights='ema'); use weights='raw'.")
        if averaging == "raw":
            state_dict = content.get(RAW_WEIGHTS, state_dict)
        architecture = _architecture_in(content, path)
        tensors = {
            name.removeprefix(TRAINING_PREFIX): state_dict[name]
            for name in _names(state_dict)
            if name.startswith(TRAINING_PREFIX)
        }
    elif averaging is not None:
        raise ValueError(
            f"VidTok: weights={averaging!r} is for checkpoints of our training, and {path} is none; leave it out."
        )
    else:
        tensors = {name: state_dict[name] for name in _names(state_dict) if not name.startswith(OBJECTIVE_PREFIX)}
    if not any(name.startswith(("encoder.", "decoder.")) for name in tensors) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ValueError(f"VidTok: {path} has no weights of a VidTok (tensors named encoder.* and decoder.*).")
    return Weights(state_dict=tensors, architecture=architecture)


def architecture_settings(architecture: Architecture) -> dict[str, object]:
    """The architecture as plain values, for a checkpoint."""
    return asdict(architecture)


def _names(state_dict: object) -> Iterable[str]:
    return [name for name in state_dict if isinstance(name, str)] if isinstance(state_dict, dict) else []


def _architecture_in(checkpoint: dict[str, object], path: Path) -> Architecture | None:
    settings = checkpoint.get("architecture")
    if not isinstance(settings, dict):
        return None
    try:
        plain = json.loads(json.dumps(settings))  # lists for tuples, as in YAML
        return checked_config(Architecture, plain, "its architecture")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"VidTok: {path} has architecture settings that no model has ({error}); fetch it again."
        ) from None
