"""Conversion of weights between three layouts: ours, the published one, and diffusers' AutoencoderVidTok."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.json_files import read_json_object
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.presets import presets
from vidtok_plugin.tokenizer.weights.checkpoints import Weights, read_weights
from vidtok_plugin.tokenizer.weights.weights import CONFIG_FILE, build_strictly, choose_architecture, load

Layout = Literal["ours", "published", "diffusers"]

DIFFUSERS_CLASS = "AutoencoderVidTok"
DIFFUSERS_VERSION = "0.38.0"  # the first with that class
DIFFUSERS_CONFIG = "config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_DIGITS = 10  # of 8 levels: 2^30 codes
LEVELS = {  # our setting: (the resolved levels, diffusers' setting)
    "encoder_spatial_levels": ("spatial_down", "spatial_ds"),
    "decoder_spatial_levels": ("spatial_up", "spatial_us"),
    "encoder_temporal_levels": ("temporal_down", "tempo_ds"),
    "decoder_temporal_levels": ("temporal_up", "tempo_us"),
}


def convert(source: str | Path, folder: str | Path, *, to: Layout = "ours", preset: str | None = None) -> Path:
    """Writes the weights of `source` to `folder` in another layout, and returns the path to load: the folder or a file.

    Configs and other objects beside the weights are dropped, and code that they name is not run.

    source: a source for `VidTok.from_pretrained`, or a folder of diffusers' `AutoencoderVidTok`.
    to: "ours" for `VidTok.from_pretrained(folder)`; "published" for a file `NAME.ckpt` in the published layout, which
        needs `preset` to be loaded; "diffusers" for `diffusers.AutoencoderVidTok.from_pretrained(folder)`.
    preset: the architecture of a bare weights file.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the weights cannot be read, or the layout cannot express the architecture.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     convert("vidtok_tiny", folder, to="published").name
        'vidtok_tiny.ckpt'
    """
    source, folder = Path(source), as_path(folder)
    if to not in get_args(Layout):
        raise ValueError(f"convert: to must be one of {', '.join(get_args(Layout))}, got {to!r}.")
    if _is_diffusers_folder(source):
        found = _read_diffusers(source)
        architecture, state_dict = choose_architecture(found, preset, source), found.state_dict
    else:
        architecture, state_dict = load(source, preset, strip_objects=True)
    model = build_strictly(lambda: VidTok(architecture), state_dict, source)
    if to == "ours":
        model.save_pretrained(folder)
        return folder
    if to == "diffusers":
        _write_diffusers(folder, model)
        return folder
    name = next((known.name for known in presets().values() if known.architecture == architecture), "vidtok")
    with atomic_write(folder / f"{name}.ckpt") as partial, partial.open("wb") as file:
        torch.save({"state_dict": dict(model.state_dict())}, file)
    return folder / f"{name}.ckpt"


def diffusers_config(architecture: Architecture) -> dict[str, Any]:
    """The config of diffusers' `AutoencoderVidTok` for an architecture: v1.1 if causal, or non-causal.

    Raises:
        ValueError: diffusers cannot express the architecture.
    """
    arch, problem = architecture, None
    if arch.causal and arch.version != "1.1":
        problem = "version must be '1.1' or causal false, got a causal v1.0 model"
    elif arch.fsq_levels is not None and set(arch.fsq_levels) != {8}:
        problem = f"all of fsq_levels must be 8, got {arch.fsq_levels}"
    elif not set(arch.temporal_down) <= set(arch.spatial_down) or not set(arch.temporal_up) <= set(arch.spatial_up):
        problem = "temporal levels must be spatial levels as well"
    if problem is not None:
        raise ValueError(f"convert: for diffusers' {DIFFUSERS_CLASS}, {problem}; convert it to 'ours' or 'published'.")
    levels = {theirs: getattr(arch, ours) for ours, (_, theirs) in LEVELS.items()}
    return {
        "_class_name": DIFFUSERS_CLASS,
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": 3,
        "out_channels": 3,
        "ch": arch.ch,
        "ch_mult": list(arch.ch_mult),
        "z_channels": arch.latent_channels,
        "double_z": arch.regularizer == "kl",
        "num_res_blocks": arch.num_res_blocks,
        **{theirs: None if given is None else list(given) for theirs, given in levels.items()},
        "dropout": arch.dropout,
        "regularizer": arch.regularizer,
        "codebook_size": arch.codebook_size or 8**6,  # their default; a KL model ignores it
        "is_causal": arch.causal,
    }


def architecture_from_diffusers(config: dict[str, Any]) -> Architecture:
    """The architecture of such a config; missing settings have diffusers' defaults.

    Raises:
        ValueError: the config is of another class, or of a network outside this family.
    """
    if config.get("_class_name") != DIFFUSERS_CLASS:
        raise ValueError(f"convert: _class_name must be {DIFFUSERS_CLASS}, got {config.get('_class_name')}.")
    defaults = diffusers_config(Architecture(regularizer="kl", kl_channels=4, version="1.1"))
    unknown = [key for key in config if key not in defaults and not key.startswith("_")]
    if unknown:
        raise ValueError(f"convert: unknown diffusers settings: {', '.join(unknown)}.")
    settings = {**defaults, **config}
    fsq = settings["regularizer"] == "fsq"
    if fsq and (type(settings["z_channels"]) is not int or not 1 <= settings["z_channels"] <= MAX_DIGITS):
        raise ValueError(f"convert: z_channels must be 1 to {MAX_DIGITS} for fsq, got {settings['z_channels']!r}.")
    try:
        levels = {ours: settings[theirs] for ours, (_, theirs) in LEVELS.items()}
        architecture = Architecture(
            regularizer=settings["regularizer"],
            fsq_levels=(8,) * settings["z_channels"] if fsq else None,
            kl_channels=None if fsq else settings["z_channels"],
            causal=settings["is_causal"],
            version="1.1" if settings["is_causal"] else "1.0",
            ch=settings["ch"],
            ch_mult=tuple(settings["ch_mult"]),
            num_res_blocks=settings["num_res_blocks"],
            dropout=settings["dropout"],
            **{ours: None if given is None else tuple(sorted(given)) for ours, given in levels.items()},
        )
    except TypeError as error:
        raise ValueError(f"convert: a setting in the diffusers config has the wrong type ({error}).") from error
    if architecture.depth >= 3:  # default levels need a depth of 3; equal ones are left implicit
        default = Architecture(regularizer="kl", kl_channels=1, ch_mult=architecture.ch_mult)
        given: dict[str, Any] = {
            ours: None
            for ours, (meaning, _) in LEVELS.items()
            if getattr(architecture, meaning) == getattr(default, meaning)
        }
        architecture = replace(architecture, **given)
    for key, value in diffusers_config(architecture).items():
        # Settings that an Architecture cannot vary.
        fixed = key in ("in_channels", "out_channels", "double_z") or (key == "codebook_size" and fsq)
        if fixed and settings[key] != value:
            raise ValueError(f"convert: {key} must be {value} in this family, got {settings[key]}.")
    return architecture


def _is_diffusers_folder(path: Path) -> bool:
    return (path / DIFFUSERS_CONFIG).is_file() and not (path / CONFIG_FILE).is_file()


def _read_diffusers(folder: Path) -> Weights:
    if not (folder / DIFFUSERS_WEIGHTS).is_file():
        raise FileNotFoundError(f"convert: {folder} has no {DIFFUSERS_WEIGHTS}; save the model as safetensors.")
    config = read_json_object(folder / DIFFUSERS_CONFIG, "fetch it again")
    return replace(read_weights(folder / DIFFUSERS_WEIGHTS), architecture=architecture_from_diffusers(config))


def _write_diffusers(folder: Path, model: VidTok) -> None:
    config = diffusers_config(model.architecture)
    with (
        atomic_write(folder / DIFFUSERS_CONFIG) as config_file,
        atomic_write(folder / DIFFUSERS_WEIGHTS) as weights_file,
    ):
        config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(model.state_dict(), weights_file, metadata={"format": "pt"})
