"""All presets, as the table and the JSON that `vidtok-plugin presets` prints."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from vidtok_plugin.tokenizer.model import count_parameters
from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, presets


def presets_table() -> Table:
    """A row per preset: architecture, size and published quality."""
    table = Table(
        *("preset", "regularizer", "causal", "t x h x w", "latents of 17x256x256", "parameters"),
        *("PSNR", "SSIM", "LPIPS", "FVD", "checkpoint"),
        caption=f"Checkpoints are files of https://huggingface.co/{HUB_REPOSITORY}; quality as published.",
    )
    for preset in presets().values():
        arch, metrics = preset.architecture, preset.metrics
        table.add_row(
            preset.name,
            f"FSQ, {arch.codebook_size} codes" if arch.codebook_size else f"KL, {arch.latent_channels} channels",
            f"v{arch.version}" if arch.causal else "no",
            "x".join(map(str, preset.compression)),
            "x".join(map(str, preset.latent_shape())),
            f"{count_parameters(arch) / 1e6:.1f} M",
            *(
                ["-"] * 4
                if metrics is None
                else [f"{metrics.psnr:.2f}", f"{metrics.ssim:.3f}", f"{metrics.lpips:.3f}", f"{metrics.fvd:.1f}"]
            ),
            preset.checkpoint or "in this package",
        )
    return table


def presets_json() -> list[dict[str, Any]]:
    """What the table shows: an object per preset; null where there is no codebook, no figures or no file on the hub.

    `latents` is the shape (c, T, H, W) of those of 17 frames of 256x256 pixels; `published` as in `Preset.metrics`.
    """
    return [
        {
            "name": preset.name,
            "regularizer": "fsq" if preset.architecture.codebook_size else "kl",
            "causal": preset.architecture.causal,
            "version": preset.architecture.version,
            "codebook_size": preset.architecture.codebook_size,
            "latent_channels": preset.architecture.latent_channels,
            "compression": list(preset.compression),
            "latents": list(preset.latent_shape()),
            "parameters": count_parameters(preset.architecture),
            "published": None if preset.metrics is None else asdict(preset.metrics),
            "checkpoint": preset.checkpoint,
        }
        for preset in presets().values()
    ]
