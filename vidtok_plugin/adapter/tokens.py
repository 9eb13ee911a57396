"""VideoTokens: what generators train on, a video's tokens on their grid, for FSQ and KL alike."""

from dataclasses import dataclass

import torch
from einops import rearrange
from tensordict import tensorclass
from torch import Tensor

UNPLACED = -1  # the first_step of tokens that nobody has placed in a clip


@dataclass(frozen=True)
class TokenGrid:
    """The places of a video's tokens: latent steps, rows and columns (of patches).

    Example:
        >>> TokenGrid(5, 8, 8).num_tokens
        320
    """

    T: int
    H: int
    W: int

    @property
    def tokens_per_step(self) -> int:
        return self.H * self.W

    @property
    def num_tokens(self) -> int:
        return self.T * self.tokens_per_step


@tensorclass
class VideoTokens:
    """Tokens of `b` videos, with batch size (b,), so that they stack, slice, move and store as one.

    All of that is along the batch: `torch.cat` and indexing refuse the axis of time, since steps mean something only
    after those that they were encoded after. `TokenizerAdapter.steps` cuts a clip's steps, and `join_steps` puts them
    together again, and nothing else.

    Example:
        >>> tokens = VideoTokens(torch.zeros(2, 5, 8, 8, dtype=torch.int64), torch.tensor([17, 17]), batch_size=[2])
        >>> tokens.ids.shape, tokens[0:1].grid
        (torch.Size([2, 320]), TokenGrid(T=5, H=8, W=8))
    """

    grid_values: Tensor  # discrete: (b, T, H, W) int64 vocabulary ids; continuous: (b, T, H, W, d) normalised patches
    num_frames: Tensor  # (b,) int64, the videos' lengths before encoding
    first_step: Tensor = None  # type: ignore[assignment]  # (b,) int64, the step of its clip that each begins with

    def __post_init__(self) -> None:
        if self.first_step is None:
            shape, device = self.num_frames.shape, self.num_frames.device
            self.first_step = torch.full(shape, UNPLACED, dtype=torch.int64, device=device)

    @property
    def discrete(self) -> bool:
        return not self.grid_values.is_floating_point()

    @property
    def grid(self) -> TokenGrid:
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
    """Tokens of videos that all have `num_frames` frames, from step `first_step` of their clips on."""
    b = values.shape[0]
    frames, first = (
        torch.full((b,), value, dtype=torch.int64, device=values.device) for value in (num_frames, first_step)
    )
    return VideoTokens(grid_values=values, num_frames=frames, first_step=first, batch_size=[b])  # type: ignore[call-arg]
