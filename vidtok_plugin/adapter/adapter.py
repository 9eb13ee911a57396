"""TokenizerAdapter: a frozen VidTok as tokens for any generator, exactly and both ways."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok_plugin.adapter.streams import TokenDecoderStream, TokenStream
from vidtok_plugin.adapter.tokens import TokenGrid, VideoTokens, video_tokens
from vidtok_plugin.adapter.vocabulary import Vocabulary
from vidtok_plugin.config import load_config, to_dict, to_yaml
from vidtok_plugin.hashing import hash_weights
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.video_checks import check_multiple

TOKENIZER_FOLDER = "tokenizer"
CONFIG_FILE = "adapter.yaml"
STATISTICS_FILE = "latent_statistics.safetensors"
_NOT_OF_TOKENS = ("decoder_spatial_levels", "decoder_temporal_levels", "dropout")  # settings of the architecture


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a `TokenizerAdapter`."""

    special_tokens: tuple[str, ...] = ("bos", "eos", "pad")
    patch_size: tuple[int, int, int] = (1, 1, 1)  # latents that make a patch: time, rows, columns

    def __post_init__(self) -> None:
        if self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(
                f"TokenizerAdapter: patch_size must be 1 in time, and 1 or more in rows and columns, "
                f"got {self.patch_size}."
            )


class TokenizerAdapter(nn.Module):
    """Freezes a VidTok (that very object) and turns its latents into tokens.

    Discrete (FSQ): vocabulary ids, the codebook's indices and after them the special tokens. Continuous (KL): patches
    of the posterior's mean, normalised by the adapter's latent statistics. Raster order: time, row, column.

    Example:
        >>> adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny"))
        >>> tokens = adapter.encode(torch.zeros(1, 3, 17, 64, 64))
        >>> tokens.ids.shape, adapter.decode(tokens).shape
        (torch.Size([1, 320]), torch.Size([1, 3, 17, 64, 64]))
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        tokenizer: VidTok,
        special_tokens: Iterable[str] = ("bos", "eos", "pad"),
        patch_size: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.config = AdapterConfig(special_tokens=tuple(special_tokens), patch_size=patch_size)
        levels = tokenizer.architecture.fsq_levels
        if levels is not None and patch_size != (1, 1, 1):
            raise ValueError(
                f"TokenizerAdapter: discrete tokens are single codes, so patch_size must be (1, 1, 1), "
                f"got {patch_size}."
            )
        _check_float32(tokenizer)
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.kind: Literal["discrete", "continuous"] = "continuous" if levels is None else "discrete"
        self._vocabulary = None
        if levels is not None:
            self._vocabulary = Vocabulary(levels=levels, special_tokens=self.config.special_tokens)
        else:
            self.register_buffer("latent_mean", torch.zeros(tokenizer.latent_channels))
            self.register_buffer("latent_std", torch.ones(tokenizer.latent_channels))
        self.register_state_dict_post_hook(_leave_out_tokenizer)
        self.register_load_state_dict_pre_hook(_keep_tokenizer)

    # The frozen tokenizer

    @property
    def frozen(self) -> bool:
        return True

    def train(self, mode: bool = True) -> Self:
        """The tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @property
    def temporal_factor(self) -> int:
        return self.tokenizer.temporal_factor

    @property
    def spatial_factor(self) -> int:
        return self.tokenizer.spatial_factor

    @property
    def hash(self) -> str:
        """A SHA-256 of the tokenizer's weights, architecture and the adapter's settings and statistics."""
        tensors = {**self.tokenizer.state_dict(), **self.state_dict()}
        return hash_weights(tensors, to_yaml(self.tokenizer.architecture), to_yaml(self.config))

    @property
    def token_hash(self) -> str:
        """A SHA-256 of what decides a video's tokens: the encoder, the patch size and the latent statistics.

        It stays when the decoder alone is trained, and with other special tokens, whose ids come after the codebook.
        """
        weights = self.tokenizer.state_dict().items()
        tensors = {name: tensor for name, tensor in weights if not name.startswith("decoder.")} | self.state_dict()
        settings = to_dict(self.tokenizer.architecture) | {"patch_size": self.config.patch_size}
        deciding = {name: value for name, value in settings.items() if name not in _NOT_OF_TOKENS}
        return hash_weights(tensors, json.dumps(deciding, sort_keys=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer, the adapter's settings and its latent statistics into `folder`."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        (folder / CONFIG_FILE).write_text(to_yaml(self.config))
        if self.kind == "continuous":
            save_file(self.state_dict(), folder / STATISTICS_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """An adapter with its tokenizer, as `save_pretrained` wrote it."""
        folder = Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"TokenizerAdapter: {folder} has no {CONFIG_FILE}; it is no folder written by save_pretrained."
            )
        config = load_config(AdapterConfig, [folder / CONFIG_FILE])
        adapter = cls(VidTok.from_pretrained(folder / TOKENIZER_FOLDER), config.special_tokens, config.patch_size)
        if adapter.kind == "continuous":
            adapter.load_state_dict(load_file(folder / STATISTICS_FILE))
        return adapter

    # Video <-> tokens

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The grid of the tokens of such a video."""
        _, rows, columns = self.config.patch_size
        sizes = []
        for name, size, patch in (("height", height, rows), ("width", width, columns)):
            factor = self.spatial_factor * patch
            check_multiple(
                size, factor, who="TokenizerAdapter", name=name, of="the tokenizer's spatial factor times the patch"
            )
            sizes.append(size // factor)
        return TokenGrid(self.tokenizer.num_latents(num_frames), *sizes)

    def check_video(self, video: Tensor) -> None:
        """A ValueError unless video (b, 3, t, h, w) fits whole patches and the tokenizer is still in float32."""
        _check_float32(self.tokenizer)
        self.grid(1, *video.shape[-2:])

    @torch.no_grad()
    def encode(self, video: Tensor, *, validate: bool = False) -> VideoTokens:
        """Video (b, 3, t, h, w) -> its tokens; in float32 whatever autocast is on, so that ids don't depend on it."""
        self.check_video(video)
        with torch.autocast(video.device.type, enabled=False):
            encoded = self.tokenizer.encode(video, validate=validate)
        return self.tokens_from_latents(encoded.latents, encoded.indices, video.shape[2])

    def decode(self, tokens: VideoTokens) -> Tensor:
        """Tokens -> video (b, 3, t, h, w), t the longest video's frames; gradients pass to continuous tokens."""
        latents = self.latents_of(tokens)
        num_frames = int(tokens.num_frames.max())
        if self.tokenizer.num_latents(num_frames) != tokens.grid.T:
            raise ValueError(
                f"TokenizerAdapter: {num_frames} frames have {self.tokenizer.num_latents(num_frames)} latent steps, "
                f"got tokens of {tokens.grid.T}."
            )
        return self.tokenizer.decode(latents)[:, :, :num_frames]

    def stream(self) -> TokenStream:
        """A stream of frames to tokens: `push(frames)` gives those of the steps completed."""
        return TokenStream(self)

    def decoder_stream(self, lookahead: bool = True) -> TokenDecoderStream:
        """A stream of tokens to frames (see `VidTok.decoder_stream`)."""
        return TokenDecoderStream(self, lookahead)

    def tokens_from_latents(self, latents: Tensor, indices: Tensor | None, num_frames: int) -> VideoTokens:
        """What the tokenizer gave for `num_frames` frames, as tokens."""
        if indices is not None:
            return video_tokens(indices, num_frames)
        return video_tokens(self._patch(latents), num_frames)

    def tokens_from_ids(self, ids: Tensor, grid: TokenGrid, num_frames: int | None = None) -> VideoTokens:
        """Generated codebook ids (b, n) -> tokens, of a whole clip if `num_frames` is not given."""
        frames = self.tokenizer.num_frames(grid.T) if num_frames is None else num_frames
        return video_tokens(self.ids_to_indices(ids, grid), frames)

    def tokens_from_patches(self, patches: Tensor, grid: TokenGrid, num_frames: int | None = None) -> VideoTokens:
        """Generated patches (b, n, patch_dim) -> tokens, of a whole clip if `num_frames` is not given."""
        values = self._grid_of(patches, grid)
        frames = self.tokenizer.num_frames(grid.T) if num_frames is None else num_frames
        return video_tokens(values, frames)

    def latents_of(self, tokens: VideoTokens) -> Tensor:
        """Tokens -> the tokenizer's latents (b, c, T, H, W)."""
        if tokens.discrete != (self.kind == "discrete"):
            raise ValueError(f"TokenizerAdapter: a {self.kind} adapter got tokens of the other kind.")
        if tokens.discrete:
            self.vocabulary.check_codebook_ids(tokens.ids)
            return self.tokenizer.indices_to_latents(tokens.grid_values)
        return self._unpatch(tokens.grid_values)

    # Discrete tokens

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError("TokenizerAdapter: continuous tokens have no vocabulary; use patches.")
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def codebook_size(self) -> int:
        return self.vocabulary.codebook_size

    @property
    def special_ids(self) -> dict[str, int]:
        return self.vocabulary.special_ids

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        return self.vocabulary.factor_sizes

    def split(self, ids: Tensor) -> Tensor:
        """Codebook ids (..., n) -> factors (..., n, k), consecutive levels, least significant first."""
        return self.vocabulary.split(ids)

    def join(self, factors: Tensor) -> Tensor:
        """Factors (..., n, k) -> codebook ids (..., n)."""
        return self.vocabulary.join(factors)

    def indices_to_ids(self, indices: Tensor, grid: TokenGrid) -> Tensor:
        """Codebook indices (b, T, H, W) -> vocabulary ids (b, n)."""
        if tuple(indices.shape[1:]) != (grid.T, grid.H, grid.W):
            raise ValueError(f"TokenizerAdapter: indices must fill {grid}, got {tuple(indices.shape)}.")
        self.vocabulary.check_codebook_ids(indices)
        return rearrange(indices, "b t h w -> b (t h w)")

    def ids_to_indices(self, ids: Tensor, grid: TokenGrid) -> Tensor:
        """Vocabulary ids (b, n) -> codebook indices (b, T, H, W); special tokens must have been taken out."""
        self._check_fill(ids.shape[1], grid)
        self.vocabulary.check_codebook_ids(ids)
        return rearrange(ids, "b (t h w) -> b t h w", t=grid.T, h=grid.H)

    # Continuous tokens

    @property
    def patch_dim(self) -> int:
        _, rows, columns = self.config.patch_size
        return rows * columns * self.tokenizer.latent_channels

    @property
    def has_latent_stats(self) -> bool:
        """Whether a KL model's statistics were set, by `fit_latent_stats` or otherwise: they begin as mean 0, std 1."""
        return self.kind == "continuous" and bool((self.latent_mean != 0).any() or (self.latent_std != 1).any())

    def latents_to_patches(self, latents: Tensor) -> Tensor:
        """Latents (b, c, T, H, W) -> normalised patches (b, n, patch_dim)."""
        return rearrange(self._patch(latents), "b t h w d -> b (t h w) d")

    def patches_to_latents(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """Normalised patches (b, n, patch_dim) -> latents (b, c, T, H, W)."""
        return self._unpatch(self._grid_of(patches, grid))

    @torch.no_grad()
    def fit_latent_stats(self, videos: Iterable[Tensor]) -> None:
        """Sets the mean and the standard deviation of each channel to those of these videos' latents."""
        self._check_continuous()
        count = 0
        total, squares = (torch.zeros_like(self.latent_mean, dtype=torch.float64) for _ in range(2))
        for video in videos:
            with torch.autocast(video.device.type, enabled=False):
                latents = self.tokenizer.encode(video).latents.double()
            flat = rearrange(latents, "b c t h w -> (b t h w) c")
            count, total, squares = count + len(flat), total + flat.sum(0), squares + flat.square().sum(0)
        if count == 0:
            raise ValueError("TokenizerAdapter: fit_latent_stats needs at least one video, got none.")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _patch(self, latents: Tensor) -> Tensor:
        self._check_continuous()
        _, rows, columns = self.config.patch_size
        c, (h, w) = self.tokenizer.latent_channels, latents.shape[-2:]
        if latents.ndim != 5 or latents.shape[1] != c or h % rows or w % columns:
            raise ValueError(
                f"TokenizerAdapter: latents must be (b, {c}, T, H, W) with H and W multiples of {rows} and {columns} "
                f"(the patch), got {tuple(latents.shape)}."
            )
        x = rearrange(latents, "b c t h w -> b t h w c")
        x = (x - self.latent_mean) / self.latent_std
        return rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=rows, q=columns)

    def _unpatch(self, values: Tensor) -> Tensor:
        self._check_continuous()
        _, rows, columns = self.config.patch_size
        x = rearrange(values, "b t h w (p q c) -> b t (h p) (w q) c", p=rows, q=columns)
        return rearrange(x * self.latent_std + self.latent_mean, "b t h w c -> b c t h w")

    def _grid_of(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """Patches (b, n, patch_dim) on their grid (b, T, H, W, patch_dim)."""
        self._check_continuous()
        self._check_fill(patches.shape[1], grid)
        if patches.shape[-1] != self.patch_dim:
            raise ValueError(f"TokenizerAdapter: patches must have {self.patch_dim} values, got {patches.shape[-1]}.")
        return rearrange(patches, "b (t h w) d -> b t h w d", t=grid.T, h=grid.H)

    def _check_continuous(self) -> None:
        if self.kind == "discrete":
            raise ValueError("TokenizerAdapter: discrete tokens are ids; patches are for KL models.")

    def _check_fill(self, num_tokens: int, grid: TokenGrid) -> None:
        if num_tokens != grid.num_tokens:
            raise ValueError(
                f"TokenizerAdapter: {grid} takes {grid.num_tokens} tokens, got {num_tokens}; "
                "take out special tokens and give whole steps."
            )


def _leave_out_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}tokenizer.")]:
        del state_dict[name]


def _keep_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """So that the frozen weights, which checkpoints leave out, are not missing, and any others are."""
    assert isinstance(module, TokenizerAdapter)
    for name, tensor in module.tokenizer.state_dict().items():
        state_dict.setdefault(f"{prefix}tokenizer.{name}", tensor)


def _check_float32(tokenizer: VidTok) -> None:
    if tokenizer.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"TokenizerAdapter: the tokenizer must be in float32, since ids change in {tokenizer.dtype}; "
            "call tokenizer.float()."
        )
