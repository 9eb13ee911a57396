"""What the transformer reads at each slot of a latent step, whose token it is to predict.

Of every slot its place is told, the tokens around it in the step before, and the step's actions (`StepInputs`).
Besides, causal models read the tokens left of the slot and above it (`CausalInputs`): all that they read is known in
raster order as well as along diagonals. Masked models read the slot's own token where it is known (`MaskedInputs`).

Shapes: b clips, T latent steps, H W rows and columns, n = H * W slots of a step, m some of them, p values of a patch,
d width. Tokens are codes (b, T, H, W) or patches (b, T, H, W, p).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model.actions import ActionEmbedding, GroupedActions
from world_model.architecture import WorldModelConfig
from world_model.inputs.embedding import CodeEmbedding, PatchEmbedding, Tables, TokenEmbedding
from world_model.inputs.neighborhood import PreviousStep

LEVELS = 10  # of corruption that the model tells apart


def at_positions(x: Tensor, positions: Tensor | int) -> Tensor:
    """The entries (b, m, ...) of x (b, n, ...) at some slots (m,), or at one: a view, at a fraction of the time."""
    return x.narrow(1, positions, 1) if isinstance(positions, int) else x.index_select(1, positions)


@dataclass(frozen=True, kw_only=True)
class InputTables:
    """The embeddings' tables, made once for many slots."""

    wide: Tables  # of width d
    narrow: Tables  # of `code_width`, for neighbours


def token_embedding(config: WorldModelConfig, width: int, std: float) -> TokenEmbedding:
    """An embedding of the config's tokens."""
    assert config.tokens is not None
    if config.tokens.patch_dim is not None:
        return PatchEmbedding(config.tokens.patch_dim, width, std)
    return CodeEmbedding(config.factors(), width, std)


class StepInputs(nn.Module):
    """What is known of a whole step beforehand."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        assert config.tokens is not None
        self.tokens = tokens = config.tokens
        width = config.transformer.width
        self.narrow = token_embedding(config, config.code_width, std=0.5)
        self.previous_step = PreviousStep(config.previous_neighbourhood, config.code_width, width)
        self.place = nn.Parameter(0.1 * torch.randn(tokens.tokens_per_step, width))
        self.actions: ActionEmbedding | None = None
        if tokens.actions.kind != "none":
            self.actions = ActionEmbedding(tokens.actions, tokens.temporal_factor, width, config.action_width)
        self.corruption: nn.Embedding | None = None
        if config.corruption:
            self.corruption = nn.Embedding(LEVELS, width)
            nn.init.zeros_(self.corruption.weight)

    def forward(
        self,
        before: Tensor,
        first: Tensor,
        actions: GroupedActions | None,
        corruption: Tensor | None,
        tables: InputTables,
    ) -> Tensor:
        """What is told of the steps (b, T, n, d): `before` (b, T, H, W[, p]) are the tokens of the step before each;
        `first` (b, T) bool are those that have none and whose actions aren't told; `corruption` (b,), the share of
        the tokens replaced as a part of the most, is none unless given."""
        conditioning = self.previous_step(self.narrow(before, tables.narrow), first).flatten(2, 3) + self.place
        if self.corruption is not None:
            share = torch.zeros(len(before), device=before.device) if corruption is None else corruption
            level = (share * LEVELS).long().clamp(max=LEVELS - 1)
            conditioning = conditioning + self.corruption(level)[:, None, None]
        if self.actions is None:
            if actions is not None:
                raise ValueError("WorldModel: it was made without actions (tokens.actions.kind none); leave them out.")
            return conditioning
        steps = before.shape[1]
        if actions is None or actions.num_steps != steps:
            got = "none" if actions is None else str(actions.num_steps)
            raise ValueError(
                f"WorldModel: actions must be given for each of the {steps} latent steps, got {got}; "
                "group_actions makes them of one action for each frame."
            )
        known = GroupedActions(values=actions.values, known=actions.known & ~first[..., None])
        return conditioning + self.actions(known)[:, :, None]


class CausalInputs(nn.Module):
    """The tokens left of a slot and above it; learned vectors where there are none."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        assert config.tokens is not None
        self.grid = (config.tokens.height, config.tokens.width)
        width = config.transformer.width
        self.wide = token_embedding(config, width, std=0.5)
        self.above = nn.Linear(config.code_width, width, bias=False)
        nn.init.normal_(self.above.weight, std=config.code_width**-0.5)
        self.no_left, self.no_above = (nn.Parameter(torch.zeros(width)) for _ in range(2))

    def forward(self, tokens: Tensor, narrow: TokenEmbedding, tables: InputTables) -> Tensor:
        """Whole steps (b, T, H, W[, p]) -> (b, T, n, d)."""
        b, steps, height, width = tokens.shape[:4]
        left = self.wide(tokens[:, :, :, :-1], tables.wide)
        left = torch.cat([self.no_left.expand(b, steps, height, 1, -1), left], dim=3)
        above = self.above(narrow(tokens[:, :, :-1], tables.narrow))
        above = torch.cat([self.no_above.expand(b, steps, 1, width, -1), above], dim=2)
        return (left + above).flatten(2, 3)

    def at(self, current: Tensor, positions: Tensor | int, narrow: TokenEmbedding, tables: InputTables) -> Tensor:
        """Some slots (m,), or one, of a step of which `current` (b, n[, p]) holds the tokens that they read -> (b, m,
        d), or the same for all b where they read none."""
        width = self.grid[1]
        if isinstance(positions, int):
            left: Tensor = self.no_left
            above: Tensor = self.no_above
            if positions % width:
                left = self.wide(at_positions(current, positions - 1), tables.wide)
            if positions >= width:
                above = self.above(narrow(at_positions(current, positions - width), tables.narrow))
            return left + above
        left = self.wide(at_positions(current, (positions - 1).clamp(min=0)), tables.wide)
        left = torch.where((positions % width == 0)[:, None], self.no_left, left)
        above = self.above(narrow(at_positions(current, (positions - width).clamp(min=0)), tables.narrow))
        above = torch.where((positions < width)[:, None], self.no_above, above)
        return left + above


class MaskedInputs(nn.Module):
    """A slot's own token; a learned vector where it isn't known."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.wide = token_embedding(config, config.transformer.width, std=0.5)
        self.mask = nn.Parameter(torch.zeros(config.transformer.width))

    def forward(self, tokens: Tensor, known: Tensor | None, tables: InputTables) -> Tensor:
        """Whole steps (b, T, H, W[, p]), of which `known` (b, T, H, W) bool is known, all without -> (b, T, n, d)."""
        own = self.wide(tokens, tables.wide)
        if known is not None:
            own = torch.where(known[..., None], own, self.mask)
        return rearrange(own, "b T H W d -> b T (H W) d")
