"""The transformer's input at each position of a latent step, whose token it predicts.

Every position is conditioned on its place in the step, the tokens around it in the previous step, the step's actions,
and the states of the previous step (`StepInputs`). Causal models also read the tokens to the left of the position and
above it, which are known in raster and in diagonal order (`CausalInputs`). Masked models read the position's own token
where it is known (`MaskedInputs`).

Shapes: b clips, T latent steps, H W rows and columns, n = H * W positions of a step, m some of them, p values of a
patch, f frames a step, s components of a state, d width. Tokens are codes (b, T, H, W) or patches (b, T, H, W, p).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from world_model.actions import GroupedActions
from world_model.architecture import WorldModelConfig
from world_model.inputs.action_embedding import ActionEmbedding
from world_model.inputs.embedding import CodeEmbedding, PatchEmbedding, Tables, TokenEmbedding
from world_model.inputs.neighborhood import PreviousStep
from world_model.inputs.state import StateEmbedding
from world_model.transformer.rotary import Rotation, grid_rotation

LEVELS = 10  # of corruption that the model distinguishes


def window_rotation(config: WorldModelConfig, steps: int, first_step: int | Tensor = 0) -> Rotation:
    """The rotation at the positions of `steps` latent steps from `first_step` on, a number or a tensor (1,)."""
    assert config.tokens is not None
    grid, head_width = config.tokens, config.transformer.head_width
    return grid_rotation(steps, grid.height, grid.width, head_width, config.rotary_base, first_step=first_step)


def at_positions(x: Tensor, index: Tensor | int) -> Tensor:
    """The entries (b, m, ...) of x (b, n, ...) at some positions (m,). A number gives a view, in a fraction of the
    time."""
    return x.narrow(1, index, 1) if isinstance(index, int) else x.index_select(1, index)


@dataclass(frozen=True, kw_only=True)
class InputTables:
    """The embeddings' tables, computed once for many positions."""

    wide: Tables  # of width d
    narrow: Tables  # of `code_width`, for neighboring tokens


def token_embedding(config: WorldModelConfig, width: int, std: float) -> TokenEmbedding:
    """An embedding of the config's tokens."""
    assert config.tokens is not None
    if config.tokens.patch_dim is not None:
        return PatchEmbedding(config.tokens.patch_dim, width, std)
    return CodeEmbedding(config.factors(), width, std)


class StepInputs(nn.Module):
    """The conditioning of a whole step, known before its first token."""

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
        self.state: StateEmbedding | None = None
        if config.state is not None and config.state.size is not None:
            self.state = StateEmbedding(config.state.size, tokens.temporal_factor, config.state.width, width)

    def forward(
        self,
        before: Tensor,
        first: Tensor,
        actions: GroupedActions | None,
        corruption: Tensor | None,
        tables: InputTables,
        past_state: Tensor | None = None,
    ) -> Tensor:
        """Conditioning (b, T, n, d) of T steps.

        `before` (b, T, H, W[, p]) is the step before each. Where `first` (b, T) is True there is none, and the step's
        actions count as unknown. `corruption` (b,) is the fraction of replaced tokens, relative to the maximum; 0 by
        default. `past_state` (b, T, f, s) holds the normalized states of the step before each, NaN where unknown, for a
        model with states.
        """
        conditioning = self.previous_step(self.narrow(before, tables.narrow), first).flatten(2, 3) + self.place
        if self.corruption is not None:
            fraction = torch.zeros(len(before), device=before.device) if corruption is None else corruption
            level = (fraction * LEVELS).long().clamp(max=LEVELS - 1)
            conditioning = conditioning + self.corruption(level)[:, None, None]
        if self.state is not None:
            assert past_state is not None
            conditioning = conditioning + self.state(past_state)[:, :, None]
        if self.actions is None:
            if actions is not None:
                raise ValueError("WorldModel: it was built without actions (tokens.actions.kind none); leave them out.")
            return conditioning
        steps = before.shape[1]
        if actions is None or actions.num_steps != steps:
            got = "none" if actions is None else str(actions.num_steps)
            raise ValueError(
                f"WorldModel: actions must be given for each of the {steps} latent steps, got {got}; "
                "make them with group_actions from one action per frame."
            )
        known = GroupedActions(values=actions.values, known=actions.known & ~first[..., None])
        return conditioning + self.actions(known)[:, :, None]


class CausalInputs(nn.Module):
    """The tokens to the left of a position and above it, or learned vectors where there are none."""

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

    def at(self, current: Tensor, index: Tensor | int, narrow: TokenEmbedding, tables: InputTables) -> Tensor:
        """Some positions (m,), or a single one, of a step (b, n[, p]) -> (b, m, d), or (d,) if it reads no token.

        The step needs valid values only at the tokens that these positions read.
        """
        width = self.grid[1]
        if isinstance(index, int):
            left: Tensor = self.no_left
            above: Tensor = self.no_above
            if index % width:
                left = self.wide(at_positions(current, index - 1), tables.wide)
            if index >= width:
                above = self.above(narrow(at_positions(current, index - width), tables.narrow))
            return left + above
        left = self.wide(at_positions(current, (index - 1).clamp(min=0)), tables.wide)
        left = torch.where((index % width == 0)[:, None], self.no_left, left)
        above = self.above(narrow(at_positions(current, (index - width).clamp(min=0)), tables.narrow))
        above = torch.where((index < width)[:, None], self.no_above, above)
        return left + above


class MaskedInputs(nn.Module):
    """A position's own token, or a learned vector where it is not known."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.wide = token_embedding(config, config.transformer.width, std=0.5)
        self.mask = nn.Parameter(torch.zeros(config.transformer.width))

    def forward(self, tokens: Tensor, known: Tensor | None, tables: InputTables) -> Tensor:
        """Steps (b, T, H, W[, p]), whose tokens are known where `known` (b, T, H, W) is True, or all by default
        -> (b, T, n, d)."""
        own = self.wide(tokens, tables.wide)
        if known is not None:
            own = torch.where(known[..., None], own, self.mask)
        return rearrange(own, "b T H W d -> b T (H W) d")
