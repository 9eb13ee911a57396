"""Weights files in the layouts of others, malicious ones included, and the comparison of loaded models."""

import os
from pathlib import Path
from typing import Any

import torch
from toy_tokenizers import random_video

from vidtok_plugin import VidTok
from vidtok_plugin.tokenizer.weights.checkpoints import architecture_settings


def published_layout(model: VidTok) -> dict[str, Any]:
    """A checkpoint as Lightning wrote the published ones, with the objective's weights beside the model's."""
    objective = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
    }
    return {"state_dict": {**model.state_dict(), **objective}, "epoch": 3, "global_step": 7, "callbacks": {}}


def training_layout(model: VidTok) -> dict[str, Any]:
    """The relevant content of a checkpoint of our training."""
    weights = {f"tokenizer.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": weights, "architecture": architecture_settings(model.architecture)}


class Malicious:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def make_malicious(path: Path, model: VidTok, kind: str, ran: Path) -> None:
    """Writes a checkpoint that creates the file `ran` when pickle reads it."""
    make = Malicious(os.system, f"touch {ran}")
    if kind == "exec":
        make = Malicious(exec, f"open({str(ran)!r}, 'w').close()")
    content = {"state_dict": model.state_dict(), "callbacks": make}
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")


def assert_same(a: VidTok, b: VidTok) -> None:
    assert a.architecture == b.architecture and not b.training
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    video = random_video(5).float()
    with torch.no_grad():
        assert torch.equal(a(video).reconstruction, b(video).reconstruction)
