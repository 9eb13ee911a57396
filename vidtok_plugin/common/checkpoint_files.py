"""Checkpoint and safetensors files, read without running any code that they name."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtok_plugin.common.damage import DAMAGE
from vidtok_plugin.common.hashing import hash_weights

_CHECKSUM = "vidtok_plugin_sha256"  # header key: of all tensors
ZIP = b"PK"  # the first bytes of a file by torch.save
MAX_HEADER = 10_000_000  # bytes of a safetensors header; a tensor takes about 100, and parsing 90 MB takes minutes


def read_checkpoint(path: Path, *, strip_objects: bool = False) -> object:
    """The contents of a checkpoint or safetensors file, on the CPU; the format is detected from the contents.

    strip_objects: replace objects other than tensors and plain values by `Stripped`, instead of refusing the file.

    Raises:
        ValueError: the file is empty, damaged, of another format, or needs code to be run.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path} is empty; fetch it again.")
    if start[8:9] == b"{":  # the header, after its length
        return read_safetensors(path)
    if start.startswith(ZIP):
        return _unpickle(path, strip_objects)
    if start.startswith(pickle.PROTO):  # torch's old format, whose objects cannot be stripped
        return _unpickle(path, strip_objects=False)
    raise ValueError(
        f"{path} is neither a PyTorch checkpoint nor a safetensors file (it starts with {start!r}); fetch it again."
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU.

    Raises:
        ValueError: the file is damaged, differs from its checksum, is of another format, or has a header that is far
            longer than that of any model.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(
            f"{path} must have a safetensors header of at most {MAX_HEADER} bytes, got {length}; fetch it again."
        )
    try:
        with torch.device("cpu"):  # safetensors 0.5 follows the context's device
            tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            saved = (opened.metadata() or {}).get(_CHECKSUM)
    except (SafetensorError, *DAMAGE) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); fetch it again.") from error
    if saved is not None and saved != hash_weights(tensors):
        raise ValueError(f"{path} is damaged: its tensors differ from the checksum in its header; fetch it again.")
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with a checksum, which `read_safetensors` compares; files without one are read as they are."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {_CHECKSUM: hash_weights(contiguous)})


def _unpickle(path: Path, strip_objects: bool) -> object:
    try:
        # An open file, since torch would choose the format by the name's ending.
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
                f"{path} is not a complete checkpoint, or cannot be read without running code; fetch it again."
            ) from error
        raise ValueError(
            f"{path} names code to be run ({code[1]}), which is refused; `vidtok-plugin convert` copies the weights of "
            "most such files without running any, and safetensors files contain no code."
        ) from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is not a complete checkpoint ({reason}); fetch it again.") from error


class Stripped:
    """The replacement of every class and function that a checkpoint names: takes any arguments and does nothing.

    Published checkpoints and Lightning's contain configs, paths and other objects beside the weights. torch's
    weights-only unpickler still reads the file; each such name resolves to this class.
    """

    def __new__(cls, *_: object) -> Self:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...
