"""The table of all presets that `vidtok-plugin presets` prints."""

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
