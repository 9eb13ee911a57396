"""Files of weights, `.ckpt` or `.safetensors`, read without ever running code that they name."""

import pickle
import re
import struct
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidtok_plugin.tokenizer.architecture import Architecture

OBJECTIVE_PREFIX = "loss."  # of a published checkpoint's weights that are not the tokenizer's
TRAINING_PREFIX = "tokenizer."  # of the tokenizer's weights in a checkpoint of our own training
ZIP = b"PK"  # what torch.save writes
RAW_WEIGHTS = "current_model_state"  # where Lightning's WeightAveraging puts them; `state_dict` then has the average
# What the wrong bytes of a damaged checkpoint lead the unpickler to.
DAMAGE = (
    EOFError, RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error
)  # fmt: skip

Averaging = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A tokenizer's weights by their published names, and its architecture where the source tells it."""

    state_dict: dict[str, Tensor]
    architecture: Architecture | None


def read_weights(path: Path, averaging: Averaging | None = None, *, strip_objects: bool = False) -> Weights:
    """The weights in a checkpoint or safetensors file, whichever its content is.

    averaging: which weights of a checkpoint of our own training; by default the averaged ones if it has any.
    strip_objects: leave out objects that are no tensors and plain values, instead of refusing a file that has any.

    Raises:
        ValueError: for a file that is damaged, of another kind, needs code to be run, or lacks the weights asked for.
    """
    content = read_checkpoint(path, strip_objects=strip_objects)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict", content), dict):
        raise ValueError(f"VidTok: {path} is no checkpoint of a VidTok: it holds no state_dict.")
    state_dict = content.get("state_dict", content)
    architecture = None
    if any(name.startswith(TRAINING_PREFIX) for name in _names(state_dict)):
        if averaging == "ema" and RAW_WEIGHTS not in content:
            raise ValueError(f"VidTok: {path} has no averaged weights (weights='ema'); take its raw ones.")
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
            f"VidTok: weights={averaging!r} is for checkpoints of our own training, and {path} is none; leave it out."
        )
    else:
        tensors = {name: state_dict[name] for name in _names(state_dict) if not name.startswith(OBJECTIVE_PREFIX)}
    if not any(name.startswith(("encoder.", "decoder.")) for name in tensors) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ValueError(f"VidTok: {path} holds no weights of a VidTok (tensors named encoder.* and decoder.*).")
    return Weights(state_dict=tensors, architecture=architecture)


def architecture_settings(architecture: Architecture) -> dict[str, object]:
    """The architecture as plain values, to be put into a checkpoint."""
    return asdict(architecture)


def _names(state_dict: object) -> Iterable[str]:
    return [name for name in state_dict if isinstance(name, str)] if isinstance(state_dict, dict) else []


def _architecture_in(checkpoint: dict[str, object], path: Path) -> Architecture | None:
    settings = checkpoint.get("architecture")
    if not isinstance(settings, dict):
        return None
    try:
        return Architecture(**settings)
    except TypeError as error:
        raise ValueError(f"VidTok: {path} has settings that this version does not know ({error}).") from error


def read_checkpoint(path: Path, *, strip_objects: bool = False) -> object:
    """All that a checkpoint or safetensors file holds, on the CPU; arguments and errors as `read_weights`."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"VidTok: {path} is empty; fetch it again.")
    if start[8:9] == b"{":  # after the header's length
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"VidTok: {path} is no whole safetensors file ({error}); fetch it again.") from error
    if start.startswith(ZIP):
        return _unpickle(path, strip_objects)
    if start.startswith(pickle.PROTO):  # torch's format before the zip file; its objects cannot be stripped
        return _unpickle(path, strip_objects=False)
    raise ValueError(
        f"VidTok: {path} is neither a PyTorch checkpoint nor a safetensors file (it begins with {start!r}); "
        "fetch it again."
    )


def _unpickle(path: Path, strip_objects: bool) -> object:
    try:
        # As an open file, since torch goes by the name's ending otherwise.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if strip_objects else []
            stripped: list[Any] = [(Stripped, name) for name in names]
            file.seek(0)
            with torch.serialization.safe_globals(stripped):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ValueError(
                f"VidTok: {path} is no whole checkpoint, or none that can be read without running code; fetch it again."
            ) from error
        raise ValueError(
            f"VidTok: {path} names code to be run ({code[1]}), which is refused; `vidtok-plugin convert` copies the "
            "weights of most such files without running any, and safetensors files name none."
        ) from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise ValueError(f"VidTok: {path} is no whole checkpoint ({reason}); fetch it again.") from error


class Stripped:
    """Stands in for whatever class or function a checkpoint names: it takes any arguments and does nothing.

    Checkpoints of the original and of Lightning hold configs, paths and the like beside the weights. torch's own
    weights-only unpickler reads the file as always; it is merely told that each such name means this class.
    """

    def __new__(cls, *_: object) -> Self:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...
