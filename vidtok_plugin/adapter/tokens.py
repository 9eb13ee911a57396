"""VideoTokens: the tokens of videos on their grid, for FSQ and KL alike. Generators train on them."""

from dataclasses import dataclass

import torch
from einops import rearrange
from tensordict import tensorclass
from torch import Tensor

UNPLACED = -1  # the first_step of tokens whose position in their clip is unknown


@dataclass(frozen=True)
class TokenGrid:
    """The size of a video in tokens: T latent steps, H rows and W columns (of patches).

    Example:
        >>> TokenGrid(5, 8, 8).num_tokens
        320
    """

    T: int
    H: int
    W: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a latent step, H W."""
        return self.H * self.W

    @property
    def num_tokens(self) -> int:
        """Tokens in all, T H W."""
        return self.T * self.tokens_per_step


@tensorclass
class VideoTokens:
    """Tokens of `b` videos, with batch size (b,): they stack, slice, move and store as one.

    These operations work along the batch only. `torch.cat` and indexing refuse the time axis, because a step
    can be decoded only after the steps before it. To cut and join steps, use `TokenizerAdapter.steps` and
    `TokenizerAdapter.join_steps`.

    Example:
        >>> tokens = VideoTokens(torch.zeros(2, 5, 8, 8, dtype=torch.int64), torch.tensor([17, 17]), batch_size=[2])
        >>> tokens.ids.shape, tokens[0:1].grid
        (torch.Size([2, 320]), TokenGrid(T=5, H=8, W=8))
    """

    grid_values: Tensor  # discrete: (b, T, H, W) int64 vocabulary ids; continuous: (b, T, H, W, d) normalized patches
    num_frames: Tensor  # (b,) int64, the length of each video before encoding
    first_step: Tensor = None  # type: ignore[assignment]  # (b,) int64, the step of its clip that each begins with

    def __post_init__(self) -> None:
        if self.first_step is None:
            shape, device = self.num_frames.shape, self.num_frames.device
            self.first_step = torch.full(shape, UNPLACED, dtype=torch.int64, device=device)

    @property
    def discrete(self) -> bool:
        """Whether these are ids; else patches."""
        return not self.grid_values.is_floating_point()

    @property
    def grid(self) -> TokenGrid:
        """Their size in steps, rows and columns."""
        batch_dims = self.num_frames.ndim
        return TokenGrid(*self.grid_values.shape[batch_dims : batch_dims + 3])

    @property
    def ids(self) -> Tensor:
        """Discrete tokens in raster order (time, row, column): (b, n) int64."""
        if not self.discrete:
            raise ValueError("VideoTokens: continuous tokens have no ids; use .patches.")
        return rearrange(self.grid_values, "... t h w -> ... (t h w)")

    @property
    def patches(self) -> Tensor:
        """Continuous tokens in raster order: (b, n, patch_dim)."""
        if self.discrete:
            raise ValueError("VideoTokens: discrete tokens have no patches; use .ids.")
        return rearrange(self.grid_values, "... t h w d -> ... (t h w) d")


def video_tokens(values: Tensor, num_frames: int, first_step: int) -> VideoTokens:
    """Tokens of videos that all have `num_frames` frames and begin with step `first_step` of their clips."""
    b = values.shape[0]
    frames, first = (
        torch.full((b,), value, dtype=torch.int64, device=values.device) for value in (num_frames, first_step)
    )
    return VideoTokens(grid_values=values, num_frames=frames, first_step=first, batch_size=[b])  # type: ignore[call-arg]


def on_grid(values: Tensor, grid: TokenGrid, shape: str) -> Tensor:
    """Tokens in raster order (b, n) or (b, n, d) -> (b, T, H, W) or (b, T, H, W, d).

    Raises:
        ValueError: another number of axes than in `shape`, such as "(b, n)", or of tokens than the grid has.
    """
    if values.ndim != len(shape.split(",")):
        raise ValueError(f"TokenizerAdapter: tokens must have the shape {shape}, got {tuple(values.shape)}.")
    if values.shape[1] != grid.num_tokens:
        raise ValueError(
            f"TokenizerAdapter: {grid} has {grid.num_tokens} tokens, got {values.shape[1]}; "
            "remove special tokens and give whole steps."
        )
    return rearrange(values, "b (t h w) ... -> b t h w ...", t=grid.T, h=grid.H)
