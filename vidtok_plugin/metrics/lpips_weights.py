"""The real weights of LPIPS: torchvision's VGG16 checkpoint and the heads in torchmetrics.

VGG16 is loaded from torch hub's cache, which torchvision uses as well, or downloaded into it. The heads (version 0.1)
are in the torchmetrics package, in a file that is byte for byte the one that VidTok was trained with.
"""

import re
from collections.abc import Mapping
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.common.checkpoint_files import read_checkpoint
from vidtok_plugin.metrics.lpips import LPIPS

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth"
VIDTOK_PREFIX = "loss.perceptual_loss."  # of LPIPS in a published VidTok checkpoint


def load_lpips(vgg: str | Path | None = None) -> LPIPS:
    """LPIPS with its real weights.

    vgg: torchvision's `vgg16-397923af.pth`, or a published VidTok checkpoint, which contains all of LPIPS. By default
        torchvision's file, from torch hub's cache or downloaded.

    Raises:
        FileNotFoundError: the weights are not available; the message says where to fetch and where to save them.
        ValueError: the file contains other weights, or is damaged.
    """
    path = cached_vgg() if vgg is None else Path(vgg)
    if not path.is_file():
        raise FileNotFoundError(f"LPIPS: there is no file {path}; fetch {VGG_URL} and pass its path.")
    weights = _lpips_weights(_tensors(path), path)
    if not any(name.startswith("lin") for name in weights):
        weights |= read_heads()
    lpips = LPIPS()
    own = lpips.state_dict()
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    if wrong:
        raise ValueError(
            f"LPIPS: {path} must contain all of VGG16's convolutions, but {wrong[0]} is missing or has another shape; "
            f"fetch {VGG_URL}."
        )
    lpips.load_state_dict(weights)
    return lpips.eval()


def cached_vgg() -> Path:
    """The path of torchvision's VGG16 checkpoint in torch hub's cache; downloads it (528 MB) if it is missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / VGG_URL.rsplit("/", 1)[1]
    if path.is_file():
        return path
    try:
        torch.hub.load_state_dict_from_url(VGG_URL, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash of the download is wrong
        raise FileNotFoundError(
            f"LPIPS: could not download VGG16 ({error}); fetch {VGG_URL} another way and save it as {path}."
        ) from error
    return path


def read_heads() -> dict[str, Tensor]:
    """The weights of the five heads in the torchmetrics package."""
    path = Path(str(files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"))
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS: this version of torchmetrics has no heads of LPIPS at {path}; fetch {HEADS_URL} and save it there."
        )
    heads = _tensors(path)
    names = [f"lin{index}.model.1.weight" for index in range(5)]
    if sorted(heads) != names:
        raise ValueError(f"LPIPS: {path} must contain {', '.join(names)}, got {', '.join(sorted(heads))}.")
    return heads


def _lpips_weights(state_dict: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The trunk, and the heads if present, of torchvision's VGG16 or a VidTok checkpoint, by the names of LPIPS."""
    places = {match[1]: name for name in LPIPS().state_dict() if (match := re.fullmatch(r"net\.slice\d\.(.+)", name))}
    weights = {}
    for name, tensor in state_dict.items():
        if name.startswith("features.") and name.removeprefix("features.") in places:
            weights[places[name.removeprefix("features.")]] = tensor
        elif name.startswith(VIDTOK_PREFIX) and not name.startswith(f"{VIDTOK_PREFIX}scaling_layer."):
            weights[name.removeprefix(VIDTOK_PREFIX)] = tensor
    if not weights:
        raise ValueError(
            f"LPIPS: {path} must be torchvision's VGG16 ({VGG_URL}) or a published VidTok checkpoint, but it has no "
            f"weights named features.* or {VIDTOK_PREFIX}*."
        )
    return weights


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from its `state_dict` if it has one."""
    content = read_checkpoint(path, strip_objects=True)  # published VidTok checkpoints also contain configs
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return {name: tensor for name, tensor in state_dict.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
