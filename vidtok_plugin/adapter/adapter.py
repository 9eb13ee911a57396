"""TokenizerAdapter: a frozen VidTok as tokens for any generator, exactly and both ways."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok_plugin.adapter.boundaries import check_beginning, cut_steps, join_steps
from vidtok_plugin.adapter.freezing import keep_out_of_checkpoints
from vidtok_plugin.adapter.patches import channel_statistics, from_patches, to_patches
from vidtok_plugin.adapter.precision import full_float32
from vidtok_plugin.adapter.sequences import from_sequences, to_sequences
from vidtok_plugin.adapter.streams import TokenDecoderStream, TokenStream
from vidtok_plugin.adapter.tokens import UNPLACED, TokenGrid, VideoTokens, video_tokens
from vidtok_plugin.adapter.vocabulary import Vocabulary
from vidtok_plugin.common.config import load_config, to_dict, to_yaml
from vidtok_plugin.common.hashing import hash_weights
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
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
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
        if isinstance(special_tokens, str):
            raise ValueError(
                f"TokenizerAdapter: special_tokens must be several names, got {special_tokens!r}, whose letters would "
                f"become one each; give ({special_tokens!r},)."
            )
        self.config = AdapterConfig(special_tokens=tuple(special_tokens), patch_size=(*patch_size,))
        levels = tokenizer.architecture.fsq_levels
        if levels is not None and self.config.patch_size != (1, 1, 1):
            raise ValueError(
                f"TokenizerAdapter: discrete tokens are single codes, so patch_size must be (1, 1, 1), "
                f"got {self.config.patch_size}."
            )
        _check_float32(tokenizer)
        self.tokenizer = tokenizer
        self._freeze()
        self.kind: Literal["discrete", "continuous"] = "continuous" if levels is None else "discrete"
        self._vocabulary = None
        if levels is not None:
            self._vocabulary = Vocabulary(levels=levels, special_tokens=self.config.special_tokens)
        else:
            self.register_buffer("latent_mean", torch.zeros(tokenizer.latent_channels))
            self.register_buffer("latent_std", torch.ones(tokenizer.latent_channels))
        keep_out_of_checkpoints(self)

    # The frozen tokenizer

    @property
    def frozen(self) -> bool:
        return True

    def train(self, mode: bool = True) -> Self:
        """The tokenizer stays in eval mode, and frozen where a parent has unfrozen all that it holds."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        self.tokenizer.requires_grad_(False).eval()

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
        if num_frames < 1:
            raise ValueError(f"TokenizerAdapter: num_frames must be at least 1, got {num_frames}.")
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
        if video.ndim != 5:
            raise ValueError(f"TokenizerAdapter: video must have the shape (b, 3, t, h, w), got {tuple(video.shape)}.")
        self.grid(1, *video.shape[-2:])

    @torch.no_grad()
    def encode(self, video: Tensor, *, validate: bool = False) -> VideoTokens:
        """Video (b, 3, t, h, w) -> its tokens; in float32 whatever autocast is on, so that ids don't depend on it."""
        self.check_video(video)
        with full_float32(video.device):
            encoded = self.tokenizer.encode(video, validate=validate)
        return self.tokens_from_latents(encoded.latents, encoded.indices, video.shape[2])

    def decode(self, tokens: VideoTokens) -> Tensor:
        """Tokens -> video (b, 3, t, h, w), t the longest video's frames; gradients pass to continuous tokens.

        Raises:
            ValueError: tokens of another kind, ids that are no codes, frames that are not those of so many steps, or
                steps from later in a clip.
        """
        latents = self.latents_of(tokens)
        check_beginning(tokens, "decoded on their own")
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

    def tokens_from_latents(
        self, latents: Tensor, indices: Tensor | None, num_frames: int, first_step: int = 0
    ) -> VideoTokens:
        """What the tokenizer gave for `num_frames` frames, from step `first_step` of their clip on, as tokens."""
        return video_tokens(self._patch(latents) if indices is None else indices, num_frames, first_step)

    def tokens_from_ids(
        self, ids: Tensor, grid: TokenGrid, num_frames: int | None = None, *, first_step: int | None = None
    ) -> VideoTokens:
        """Generated codebook ids (b, n) -> tokens, of a whole clip if `num_frames` is not given.

        With `num_frames` they are any steps, which decode as a clip or go on where a decoder stream is; `first_step`
        says which steps of their clip, so that the stream checks it.
        """
        return self._generated(self.ids_to_indices(ids, grid), num_frames, first_step)

    def tokens_from_patches(
        self, patches: Tensor, grid: TokenGrid, num_frames: int | None = None, *, first_step: int | None = None
    ) -> VideoTokens:
        """Generated patches (b, n, patch_dim) -> tokens, of a whole clip if `num_frames` is not given (see above)."""
        return self._generated(self._grid_of(patches, grid), num_frames, first_step)

    def _generated(self, values: Tensor, num_frames: int | None, first_step: int | None) -> VideoTokens:
        begin = 0 if first_step is None else first_step
        if num_frames is None:
            frames = self.tokenizer.num_frames(begin + values.shape[1]) - self.tokenizer.num_frames(begin)
            return video_tokens(values, frames, begin)
        return video_tokens(values, num_frames, UNPLACED if first_step is None else first_step)

    # Clips and their steps

    def steps(self, tokens: VideoTokens, start: int, stop: int) -> VideoTokens:
        """Steps `start` to `stop` (not with it) of these tokens, which keep their place in the clip."""
        return cut_steps(self.tokenizer, tokens, start, stop)

    def join_steps(self, parts: Sequence[VideoTokens]) -> VideoTokens:
        """Parts of clips as one, each of which must begin with the step at which the one before it ends.

        So clips that were encoded separately, which all begin with step 0, are never taken for one stream. That the
        parts are of the same clip is the caller's part: streams that forked share their first steps.

        Example:
            >>> adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny"))
            >>> stream = adapter.stream()
            >>> parts = [stream.push(torch.zeros(1, 3, n, 8, 8)) for n in (2, 7)]
            >>> adapter.join_steps(parts).grid
            TokenGrid(T=3, H=1, W=1)
        """
        return join_steps(self.tokenizer, parts)

    def latents_of(self, tokens: VideoTokens) -> Tensor:
        """Tokens -> the tokenizer's latents (b, c, T, H, W)."""
        if tokens.num_frames.ndim != 1:
            raise ValueError(
                f"TokenizerAdapter: tokens must have a batch size (b,), got {tuple(tokens.num_frames.shape)}; take "
                "tokens[i : i + 1] for one video's."
            )
        if tokens.discrete != (self.kind == "discrete"):
            raise ValueError(f"TokenizerAdapter: a {self.kind} adapter got tokens of the other kind.")
        if tokens.discrete:
            self.vocabulary.check_codebook_ids(tokens.ids)
            return self.tokenizer.indices_to_latents(tokens.grid_values)
        return from_patches(tokens.grid_values, self.latent_mean, self.latent_std, self.config.patch_size)

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
        self._check_fill(ids, grid, "b, n")
        self.vocabulary.check_codebook_ids(ids)
        return rearrange(ids.to(torch.int64), "b (t h w) -> b t h w", t=grid.T, h=grid.H)

    def sequences(self, tokens: VideoTokens) -> Tensor:
        """Clips of ids for a language model, each between bos and eos: (b, n + 2) vocabulary ids."""
        check_beginning(tokens, "sequences with bos")
        return to_sequences(tokens.ids, self.vocabulary)

    def tokens_from_sequences(self, sequences: Tensor, grid: TokenGrid, num_frames: int | None = None) -> VideoTokens:
        """Sequences (b, m) or (m,) of clips between bos and eos -> tokens of all of them, stacked along the batch.

        A row holds one clip or several, each of that grid, and pads after the last. Each clip stays its own.

        Raises:
            ValueError: names the first place where a row has another id.
        """
        return self.tokens_from_ids(from_sequences(sequences, grid, self.vocabulary), grid, num_frames, first_step=0)

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
        values = self._grid_of(patches, grid)
        return from_patches(values, self.latent_mean, self.latent_std, self.config.patch_size)

    @torch.no_grad()
    def fit_latent_stats(self, videos: Iterable[Tensor]) -> None:
        """Sets the mean and the standard deviation of each channel to those of these videos' latents."""
        self._check_continuous()
        mean, std = channel_statistics(self._latents(video) for video in videos)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _latents(self, video: Tensor) -> Tensor:
        self.check_video(video)
        with full_float32(video.device):
            return self.tokenizer.encode(video).latents

    def _patch(self, latents: Tensor) -> Tensor:
        self._check_continuous()
        return to_patches(latents, self.latent_mean, self.latent_std, self.config.patch_size)

    def _grid_of(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """Patches (b, n, patch_dim) on their grid (b, T, H, W, patch_dim)."""
        self._check_continuous()
        self._check_fill(patches, grid, "b, n, patch_dim")
        if patches.shape[-1] != self.patch_dim:
            raise ValueError(f"TokenizerAdapter: patches must have {self.patch_dim} values, got {patches.shape[-1]}.")
        return rearrange(patches, "b (t h w) d -> b t h w d", t=grid.T, h=grid.H)

    def _check_continuous(self) -> None:
        if self.kind == "discrete":
            raise ValueError("TokenizerAdapter: discrete tokens are ids; patches are for KL models.")

    def _check_fill(self, values: Tensor, grid: TokenGrid, shape: str) -> None:
        if values.ndim != len(shape.split(",")):
            raise ValueError(f"TokenizerAdapter: tokens must have the shape ({shape}), got {tuple(values.shape)}.")
        if values.shape[1] != grid.num_tokens:
            raise ValueError(
                f"TokenizerAdapter: {grid} takes {grid.num_tokens} tokens, got {values.shape[1]}; "
                "take out special tokens and give whole steps."
            )


def _check_float32(tokenizer: VidTok) -> None:
    if tokenizer.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"TokenizerAdapter: the tokenizer must be in float32, since ids change in {tokenizer.dtype}; "
            "call tokenizer.float()."
        )
