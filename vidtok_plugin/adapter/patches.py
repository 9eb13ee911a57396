"""Patches: KL latents as tokens, normalized by the mean and standard deviation of each channel, and back."""

from collections.abc import Iterable, Mapping

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.common.devices import for_float64
from vidtok_plugin.common.state_dict import check_numbers

MIN_STD = 1e-9  # of a channel; fitted ones are at least 1e-6


def to_patches(latents: Tensor, mean: Tensor, std: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Latents (b, c, T, H, W) -> normalized patches (b, T, H / p, W / q, p q c)."""
    _, rows, columns = patch_size
    c = len(mean)
    if latents.ndim != 5 or latents.shape[1] != c or latents.shape[3] % rows or latents.shape[4] % columns:
        raise ValueError(
            f"TokenizerAdapter: latents must be (b, {c}, T, H, W) with H and W multiples of {rows} and {columns} "
            f"(the patch size), got {tuple(latents.shape)}."
        )
    x = (rearrange(latents, "b c t h w -> b t h w c") - mean) / std
    return rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=rows, q=columns)


def from_patches(patches: Tensor, mean: Tensor, std: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Normalized patches (b, T, H, W, p q c) -> latents (b, c, T, H p, W q)."""
    _, rows, columns = patch_size
    x = rearrange(patches, "b t h w (p q c) -> b t (h p) (w q) c", p=rows, q=columns)
    return rearrange(x * std + mean, "b t h w c -> b c t h w")


def check_statistics(statistics: Mapping[str, Tensor], source: str) -> None:
    """A ValueError unless the latent statistics read from `source` are finite and standard deviations positive."""
    for name, tensor in statistics.items():
        check_numbers(name, tensor.cpu(), torch.float32, who="TokenizerAdapter", source=source)
        if name == "latent_std" and (small := tensor < MIN_STD).any():
            raise ValueError(
                f"TokenizerAdapter: latent_std in {source} must be at least {MIN_STD}, got "
                f"{tensor[small][0].item()} of channel {int(small.nonzero()[0])}; "
                "fit the statistics again with fit_latent_stats."
            )


def channel_statistics(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,), in float64, of each channel over all of these latents (b, c, T, H, W)."""
    count = 0
    total = squares = torch.zeros((), dtype=torch.float64)
    for batch in latents:
        flat = rearrange(for_float64(batch).double(), "b c t h w -> (b t h w) c")
        count, total, squares = count + len(flat), total + flat.sum(0).cpu(), squares + flat.square().sum(0).cpu()
    if count == 0:
        raise ValueError("TokenizerAdapter: fit_latent_stats needs at least one video, got none.")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    if not (mean.isfinite() & std.isfinite()).all():
        raise ValueError("TokenizerAdapter: fit_latent_stats needs finite latents, got NaN or infinite values.")
    return mean, std
