"""Checkpoint and safetensors files, read without running any code that they name."""

import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

ZIP = b"PK"  # what torch.save writes
# What the unpickler may raise on the wrong bytes of a damaged checkpoint.
DAMAGE = (
    EOFError, RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error
)  # fmt: skip


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
