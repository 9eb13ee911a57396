"""The regularizers that turn the encoder's output into latents: finite scalar quantization (FSQ) or a Gaussian
posterior (KL)."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.distributed import mean_over_processes

ENTROPY_INVERSE_TEMPERATURE = 100.0
MIN_LOG_PROBABILITY_ARGUMENT = 1e-5


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Latents of a video, and their indices in the codebook if it has one."""

    latents: Tensor  # (b, c, T, H, W)
    indices: Tensor | None  # (b, T, H, W) int64; None for KL


@dataclass(frozen=True, kw_only=True)
class Regularized:
    """The result of a regularizer."""

    latents: Tensor  # (b, c, T, H, W)
    indices: Tensor | None  # (b, T, H, W) int64; None for KL
    terms: dict[str, Tensor] | None  # unweighted training losses by name; None unless requested


class FSQ(nn.Module):
    """Finite scalar quantization (arXiv 2309.15505) as in VidTok; always computed in float32.

    The first channel is the least significant digit of an index.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(
        self, z: Tensor, *, sample: bool, generator: torch.Generator | None = None, with_terms: bool
    ) -> Regularized:
        """z: the encoder's output (b, c, T, H, W). `sample` has no effect: a code is a function of z."""
        with torch.autocast(z.device.type, enabled=False):
            z = rearrange(z, "b c ... -> b ... c").to(z.dtype if z.dtype == torch.float64 else torch.float32)
            levels = self._levels(z)
            half_width = (levels - 1) * 1.001 / 2
            offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(z)
            bounded = torch.tanh(z + torch.atanh(offset / half_width)) * half_width - offset
            digits = bounded + (bounded.round() - bounded).detach()  # straight-through gradient
            latents = digits / self._half_levels(z)
            terms = fsq_terms(z, latents.detach(), self.levels) if with_terms else None
            # The gradient passes through `latents` only; indices are integers.
            indices = self.latents_to_indices(rearrange(latents.detach(), "b ... c -> b c ..."))
        return Regularized(latents=rearrange(latents, "b ... c -> b c ..."), indices=indices, terms=terms)

    def latents_to_indices(self, latents: Tensor) -> Tensor:
        """Quantized latents (b, c, T, H, W) -> indices (b, T, H, W) int64."""
        digits = rearrange(latents, "b c ... -> b ... c") * self._half_levels(latents)
        digits = digits.round().to(torch.int64) + self._half_levels(latents).to(torch.int64)
        # NaN becomes the least int64; an index is within the codebook whatever the latents are.
        digits = digits.clamp(torch.zeros_like(digits[..., :1]), self._levels(digits) - 1)
        return (digits * self._place_values(latents.device)).sum(-1)

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Indices (b, T, H, W) -> latents (b, c, T, H, W) float32."""
        levels = torch.tensor(self.levels, device=indices.device)
        digits = indices.unsqueeze(-1) // self._place_values(indices.device) % levels
        latents = (digits - levels // 2).float() / (levels // 2)
        return rearrange(latents, "b ... c -> b c ...")

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, dtype=like.dtype, device=like.device)

    def _half_levels(self, like: Tensor) -> Tensor:
        return self._levels(like) // 2

    def _place_values(self, device: torch.device) -> Tensor:
        return torch.tensor([math.prod(self.levels[:d]) for d in range(len(self.levels))], device=device)


def fsq_terms(z: Tensor, codes: Tensor, levels: tuple[int, ...]) -> dict[str, Tensor]:
    """FSQ's training losses, unweighted: `entropy` (a token's minus the batch's) and `commitment`.

    z: latents before the tanh (..., c); codes: the normalized codes (..., c) to which they were rounded.

    A token's probabilities over the codebook, `softmax_k(2 * 100 * <z, c_k>)`, are a product of one softmax a channel.
    So a token's entropy is the sum of its channels' entropies, and the mean probabilities over the tokens are one
    product of two half-codebook matrices, without a tokens x codebook matrix. The published code clamps inside its
    logarithm, `-p log(max(p, 1e-5))`, which a product cannot reproduce: the token entropy here is the unclamped one
    that its authors meant. The batch is that of all processes; the other terms are each process's own, which DDP
    averages.
    """
    flat = z.reshape(-1, z.shape[-1])
    token_entropy, halves = flat.new_zeros(()), []
    middle = len(levels) // 2
    for channels in (range(middle), range(middle, len(levels))):
        joint = flat.new_ones(len(flat), 1)
        for d in channels:
            values = (torch.arange(levels[d], device=z.device) - levels[d] // 2).to(z) / (levels[d] // 2)
            log_p = (2 * ENTROPY_INVERSE_TEMPERATURE * flat[:, d, None] * values).log_softmax(-1)
            p = log_p.exp()
            token_entropy = token_entropy - (p * log_p).sum(-1).mean()
            joint = rearrange(joint.unsqueeze(-1) * p.unsqueeze(-2), "n a l -> n (a l)")
        halves.append(joint)
    mean_p = mean_over_processes(halves[0].T @ halves[1] / len(flat))
    batch_entropy = -(mean_p * mean_p.clamp(min=MIN_LOG_PROBABILITY_ARGUMENT).log()).sum()
    return {"entropy": token_entropy - batch_entropy, "commitment": (z - codes).square().mean()}


def check_finite(z: Tensor) -> None:
    """A ValueError that names the first clip and step in which the encoder's output (b, c, T, H, W) is not finite."""
    if not (finite := z.isfinite()).all():
        clip, channel, step, row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"VidTok: the encoder's output must be finite, got {z[clip, channel, step, row, column].item()} for clip "
            f"{clip} at latent step {step}; check the weights and the video's values."
        )


class KL(nn.Module):
    """A diagonal Gaussian posterior; its latents are the mean, or with `sample` a sample."""

    def forward(
        self, z: Tensor, *, sample: bool, generator: torch.Generator | None = None, with_terms: bool
    ) -> Regularized:
        """z: the encoder's output (b, 2 c, T, H, W), mean and log variance."""
        mean, log_variance = z.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        latents = mean
        if sample:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            latents = mean + (0.5 * log_variance).exp() * noise
        terms = None
        if with_terms:
            divergence = mean.square() + log_variance.exp() - 1 - log_variance
            terms = {"kl": 0.5 * divergence.sum() / len(mean)}
        return Regularized(latents=latents, indices=None, terms=terms)
