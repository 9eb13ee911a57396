"""The head of patches: a small MLP, trained by flow matching, that turns noise into each token's patch.

It follows MAR's diffusion loss (Li et al., arXiv 2406.11838), with the straight paths of flow matching (Lipman et al.,
arXiv 2210.02747): x_s = (1 - s) noise + s patch, and the network predicts the velocity patch - noise.

Shapes: ... tokens, p values of a patch, d width of the transformer, w width of the MLP, r noise levels of a token.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.architecture import FlowConfig
from world_model.heads.base import DrawnTokens
from world_model.heads.sampler import Sampler
from world_model.inputs.embedding import Tables

FREQUENCIES = 32  # of the noise level's embedding
EVALUATION_SEED = 0


class FlowHead(nn.Module):
    """Velocities of patches, conditioned on the transformer's output and the noise level."""

    def __init__(self, patch_dim: int, width: int, cfg: FlowConfig) -> None:
        super().__init__()
        self.cfg, self.patch_dim = cfg, patch_dim
        self.condition = nn.Linear(width, cfg.width)
        self.level = nn.Linear(2 * FREQUENCIES, cfg.width)
        self.patch = nn.Linear(patch_dim, cfg.width)
        self.blocks = nn.ModuleList(FlowBlock(cfg.width) for _ in range(cfg.depth))
        self.out = nn.Linear(cfg.width, patch_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def tables(self) -> Tables:
        return ()

    def velocity(self, x: Tensor, level: Tensor, hidden: Tensor) -> Tensor:
        """x (..., p) at noise level (..., 1), 0 for noise to 1 for a patch, and hidden (..., d) -> (..., p)."""
        exponents = torch.arange(FREQUENCIES, device=x.device, dtype=torch.float32) / FREQUENCIES
        angles = level * 1000 ** (1 - exponents)
        conditioning = self.condition(hidden) + self.level(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype))
        conditioning = F.silu(conditioning)
        y = self.patch(x)
        for block in self.blocks:
            y = block(y, conditioning)
        return self.out(F.layer_norm(y, y.shape[-1:]))

    def scores(
        self, hidden: Tensor, neighbor_codes: Tensor | None, patches: Tensor, tables: Tables, *, correct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Squared errors of the velocity (..., 1), averaged over the patch and `repeats` noise levels, and None, since
        no patch is `correct` or not. In eval mode noise and levels are the same in each call."""
        repeats = self.cfg.repeats
        shape = (repeats, *patches.shape)
        if self.training:
            noise = torch.randn(shape, device=patches.device, dtype=patches.dtype)
            level = torch.rand((*shape[:-1], 1), device=patches.device, dtype=patches.dtype)
        else:
            generator = torch.Generator().manual_seed(EVALUATION_SEED)
            noise = torch.randn(shape, generator=generator).to(patches)
            level = torch.rand((*shape[:-1], 1), generator=generator).to(patches)
        x = (1 - level) * noise + level * patches
        error = self.velocity(x, level, hidden.expand(repeats, *hidden.shape)) - (patches - noise)
        return error.float().square().mean(-1, keepdim=True).mean(0), None

    def check_sampler(self, sampler: Sampler) -> None:
        """A ValueError for settings that patches do not have."""
        if sampler.top_k is not None or sampler.top_p is not None:
            raise ValueError(
                f"Sampler: top_k and top_p are for codes, got {sampler.top_k} and {sampler.top_p} for continuous "
                "tokens; leave them out."
            )

    @property
    def noise_per_token(self) -> int:
        """Uniform numbers per token, an even number for `normal_numbers`."""
        return 2 * math.ceil(self.patch_dim / 2)

    def draw(
        self,
        hidden: Tensor,
        neighbor_codes: Tensor | None,
        noise: Tensor,
        sampler: Sampler,
        tables: Tables,
        *,
        confidence: bool = True,
        entropy: bool = False,
    ) -> DrawnTokens:
        """Draw patches (b, m, p) for hidden (b, m, d) by `noise` (b, m, .), uniform in [0, 1).

        The flow starts at normal noise times `temperature` and follows the velocity by Heun's method. With guidance,
        hidden has the 2 b rows of `Sampler.model_rows`, and velocities are guided. Patches have neither
        `confidence` nor `entropy`.
        """
        x = (sampler.temperature * normal_numbers(noise)[..., : self.patch_dim]).to(hidden.dtype)
        steps = sampler.flow_steps or self.cfg.sampling_steps
        levels = torch.linspace(0, 1, steps + 1, device=x.device, dtype=x.dtype)
        for i in range(steps):
            span = levels[i + 1] - levels[i]
            slope = self._guided(x, levels[i], hidden, sampler)
            ahead = x + span * slope
            if i + 1 < steps:  # the velocity at a patch itself is not learned well
                slope = (slope + self._guided(ahead, levels[i + 1], hidden, sampler)) / 2
            x = x + span * slope
        return DrawnTokens(tokens=x, confidence=None)

    def _guided(self, x: Tensor, level: Tensor, hidden: Tensor, sampler: Sampler) -> Tensor:
        rows = sampler.model_rows(x)
        velocity = self.velocity(rows, level.expand(*rows.shape[:-1], 1), hidden)
        return sampler.guide(velocity) if sampler.guided else velocity


class FlowBlock(nn.Module):
    """A residual MLP, scaled and shifted by its conditioning; it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, y: Tensor, conditioning: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(conditioning).chunk(3, dim=-1)
        inner = F.layer_norm(y, y.shape[-1:]) * (1 + scale) + shift
        return y + gate * self.down(F.silu(self.up(inner)))


def normal_numbers(uniforms: Tensor) -> Tensor:
    """Standard normal numbers (..., n) from as many uniform ones, n even, by the Box-Muller transform.

    They have at least single precision: half would round uniform numbers to 1, and give infinity.
    """
    one, other = (uniforms if uniforms.dtype == torch.float64 else uniforms.float()).chunk(2, dim=-1)
    radius = (-2 * torch.log1p(-one.clamp(max=1 - 1e-7))).sqrt()
    angle = 2 * math.pi * other
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
