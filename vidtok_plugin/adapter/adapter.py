"""TokenizerAdapter: a frozen VidTok whose latents are tokens for any generator, exactly and in both directions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.adapter.boundaries import check_beginning, cut_steps, join_steps
from vidtok_plugin.adapter.card import adapter_facts
from vidtok_plugin.adapter.freezing import FrozenTokenizer
from vidtok_plugin.adapter.hashes import adapter_hash, token_hash
from vidtok_plugin.adapter.patches import channel_statistics, check_statistics, from_patches, to_patches
from vidtok_plugin.adapter.precision import full_float32
from vidtok_plugin.adapter.saving import (
    ADAPTER_FILES,
    NEEDED_FILES,
    AdapterConfig,
    check_hash,
    load_adapter_parts,
    save_adapter,
)
from vidtok_plugin.adapter.sequences import from_sequences, to_sequences
from vidtok_plugin.adapter.streams import TokenDecoderStream, TokenStream
from vidtok_plugin.adapter.tokens import UNPLACED, TokenGrid, VideoTokens, on_grid, video_tokens
from vidtok_plugin.adapter.vocabulary import Vocabulary
from vidtok_plugin.common.hub_push import PushedToHub
from vidtok_plugin.common.hub_source import HubOptions, saved_folder
from vidtok_plugin.common.model_card import CardInfo, writing_card
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import check_tensor
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.regularizers import Encoded
from vidtok_plugin.tokenizer.video_checks import check_latents, check_multiple


class TokenizerAdapter(PushedToHub, FrozenTokenizer):
    """Freezes a VidTok (the object itself, not a copy) and turns its latents into tokens.

    Discrete (FSQ): a token is a vocabulary id. Codebook indices come first, then the special tokens. Continuous (KL):
    a token is a patch of the posterior's mean, normalized by the adapter's latent statistics. Tokens are in raster
    order: time, row, column.

    tokenizer: in float32; its weights get no gradients and stay out of a parent's checkpoints.
    special_tokens: names of the ids after the codebook; without effect on a KL model.
    patch_size: latents in a patch, as (time, rows, columns); time must be 1, and FSQ needs (1, 1, 1).

    Raises:
        ValueError: such a patch size, special tokens that repeat or are one string, or a tokenizer in half precision.

    Example:
        >>> adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny"))
        >>> tokens = adapter.encode(torch.zeros(1, 3, 17, 64, 64))
        >>> tokens.ids.shape, adapter.decode(tokens).shape
        (torch.Size([1, 320]), torch.Size([1, 3, 17, 64, 64]))
    """

    saved_files = ADAPTER_FILES
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        tokenizer: VidTok,
        special_tokens: Iterable[str] = ("bos", "eos", "pad"),
        patch_size: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        if isinstance(special_tokens, str):
            raise ValueError(
                f"TokenizerAdapter: special_tokens must be several names, got {special_tokens!r}, whose letters would "
                f"become one token each; give ({special_tokens!r},)."
            )
        config = AdapterConfig(special_tokens=tuple(special_tokens), patch_size=(*patch_size,))
        levels = tokenizer.architecture.fsq_levels
        if levels is not None and config.patch_size != (1, 1, 1):
            raise ValueError(
                f"TokenizerAdapter: discrete tokens are single codes, so patch_size must be (1, 1, 1), "
                f"got {config.patch_size}."
            )
        vocabulary = None if levels is None else Vocabulary(levels=levels, special_tokens=config.special_tokens)
        super().__init__(tokenizer)  # a tokenizer that is refused above stays as it was
        self.config = config
        self.kind: Literal["discrete", "continuous"] = "continuous" if levels is None else "discrete"
        self._vocabulary = vocabulary
        if self.kind == "continuous":
            channels, device = tokenizer.latent_channels, tokenizer.device
            self.register_buffer("latent_mean", torch.zeros(channels, dtype=torch.float32, device=device))
            self.register_buffer("latent_std", torch.ones(channels, dtype=torch.float32, device=device))
            self.register_load_state_dict_pre_hook(_check_loaded_statistics)

    @property
    def temporal_factor(self) -> int:
        """Frames for each latent step, f."""
        return self.tokenizer.temporal_factor

    @property
    def spatial_factor(self) -> int:
        """Pixels of a side for each latent."""
        return self.tokenizer.spatial_factor

    @property
    def hash(self) -> str:
        """SHA-256 of the tokenizer's weights and architecture, and of the adapter's settings and latent statistics."""
        return self.cached_hash(
            "adapter", lambda: adapter_hash(self.tokenizer, self.config, self.state_dict()), decoder=True
        )

    @property
    def token_hash(self) -> str:
        """SHA-256 of what determines a video's tokens: the encoder, the patch size and the latent statistics."""
        return self.cached_hash(
            "token", lambda: token_hash(self.tokenizer, self.config, self.state_dict()), decoder=False
        )

    def save_pretrained(self, folder: str | Path, *, card: CardInfo | Literal[False] | None = None) -> None:
        """Write the tokenizer, the adapter's settings, its latent statistics and a model card into `folder`.

        card: what the card says beyond the architecture; False writes none. A card that was edited is kept.
        """
        folder = user_path(folder)
        with writing_card(folder, adapter_facts(self.tokenizer, self.config), card):
            save_adapter(folder, self.tokenizer, self.config, self.state_dict(), self.hash)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The adapter and its tokenizer that `save_pretrained` wrote.

        source: a folder, or `user/name` on the Hugging Face hub, where `push_to_hub` put it. A folder comes first.
        revision: branch, tag or commit on the hub; the newest by default. `user/name@revision` says the same.
        subfolder: of the repository on the hub: `adapter` in that of a world.
        token: for private repositories; by default that of `hf auth login` or HF_TOKEN.
        local_files_only: use the hub's cache, without a connection.

        Raises:
            FileNotFoundError: `save_pretrained` did not write this folder, or the download failed.
            PermissionError: the login may not read the repository.
            ValueError: a file in it is damaged or was changed since, or has NaN, infinite or huge values.
        """
        options = HubOptions(revision=revision, subfolder=subfolder, token=token, local_files_only=local_files_only)
        folder = saved_folder("TokenizerAdapter", source, options, wanted=ADAPTER_FILES, needed=NEEDED_FILES)
        tokenizer, config, statistics = load_adapter_parts(folder)
        adapter = cls(tokenizer, config.special_tokens, config.patch_size)
        adapter.load_state_dict(statistics)
        check_hash(folder, adapter.hash)
        return adapter

    # Video <-> tokens

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The token grid of a video of this size, in frames and pixels.

        Raises:
            ValueError: no frames, or a height or width that is no multiple of spatial factor times patch.
        """
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
        """A ValueError unless video (b, 3, t, h, w) fills whole patches and the encoder is still as it was frozen.

        The encoder is checked by what PyTorch counts as writes; see `check_encoder`.
        """
        self.check_encoder(values=False)
        check_tensor(video, who="TokenizerAdapter", name="video")
        if video.ndim != 5:
            raise ValueError(f"TokenizerAdapter: video must have the shape (b, 3, t, h, w), got {tuple(video.shape)}.")
        self.grid(1, *video.shape[-2:])

    @torch.no_grad()
    def encode(self, video: Tensor, *, validate: bool = False) -> VideoTokens:
        """Video (b, 3, t, h, w), in [-1, 1] or uint8 -> tokens.

        Runs in float32 even under autocast, which would change ids. `validate`: check the range and the values of the
        frozen weights on CUDA as well.

        Raises:
            ValueError: a video of another shape, size or range, or an encoder that was changed since it was frozen.
        """
        encoded = self._encode(video, validate)
        return self.tokens_from_latents(encoded.latents, encoded.indices, video.shape[2])

    @torch.compiler.disable  # compiled by a parent, ids would change
    def _encode(self, video: Tensor, validate: bool = False) -> Encoded:
        self.check_video(video)
        self.check_encoder(values=validate or None)
        with full_float32(video.device):
            return self.tokenizer.encode(video, validate=validate)

    def decode(self, tokens: VideoTokens) -> Tensor:
        """Tokens -> video (b, 3, t, h, w) in about [-1, 1], as long as the longest of them.

        Gradients reach continuous tokens.

        Raises:
            ValueError: tokens of the other kind, ids outside the codebook, a number of frames that does not fit the
                number of steps, steps from the middle of a clip, or a decoder that was changed since it was frozen.
        """
        self.check_decoder()
        latents = self.latents_of(tokens)
        if latents.shape[0] == 0:
            raise ValueError("TokenizerAdapter: tokens must be of at least one video to be decoded, got none.")
        check_beginning(tokens, "decoded on their own")
        num_frames = int(tokens.num_frames.max())
        if self.tokenizer.num_latents(num_frames) != tokens.grid.T:
            raise ValueError(
                f"TokenizerAdapter: {num_frames} frames have {self.tokenizer.num_latents(num_frames)} latent steps, "
                f"got tokens of {tokens.grid.T}."
            )
        return self.tokenizer.decode(latents)[:, :, :num_frames]

    def stream(self) -> TokenStream:
        """A stream from frames to tokens: `push(frames)` returns the tokens of the steps that they complete."""
        self.check_encoder()
        return TokenStream(self)

    def decoder_stream(self, lookahead: bool = True, *, decoder: VidTok | None = None) -> TokenDecoderStream:
        """A stream from tokens to frames (see `VidTok.decoder_stream`).

        decoder: a copy of the tokenizer that decodes in its place, such as one in bfloat16, whose frames are bfloat16.
        """
        self.check_decoder()
        return TokenDecoderStream(self, lookahead, decoder)

    def tokens_from_latents(
        self, latents: Tensor, indices: Tensor | None, num_frames: int, first_step: int = 0
    ) -> VideoTokens:
        """Tokens of the tokenizer's output for `num_frames` frames, from step `first_step` of their clip on."""
        return video_tokens(self._patch(latents) if indices is None else indices, num_frames, first_step)

    def latents_of(self, tokens: VideoTokens, *, validate: bool = True) -> Tensor:
        """Tokens -> the tokenizer's latents (b, c, T, H, W).

        `validate=False` leaves out the check that ids are in the codebook, which waits for the device.
        """
        if not isinstance(tokens, VideoTokens):
            raise ValueError(
                f"TokenizerAdapter: tokens must be VideoTokens, got {type(tokens).__name__}; make them with "
                "tokens_from_ids or tokens_from_patches."
            )
        if tokens.num_frames.ndim != 1:
            raise ValueError(
                f"TokenizerAdapter: tokens must have a batch size (b,), got {tuple(tokens.num_frames.shape)}; use "
                "tokens[i : i + 1] for a single video."
            )
        if tokens.discrete != (self.kind == "discrete"):
            raise ValueError(f"TokenizerAdapter: a {self.kind} adapter got tokens of the other kind.")
        if tokens.discrete:
            values = tokens.grid_values
            if validate:
                values = self.vocabulary.checked_codebook_ids(values)
            return self.tokenizer.indices_to_latents(values, validate=False)
        return self._unpatch(tokens.grid_values)

    # Generated tokens, and steps of clips

    def tokens_from_ids(
        self, ids: Tensor, grid: TokenGrid, num_frames: int | None = None, *, first_step: int | None = None
    ) -> VideoTokens:
        """Generated codebook ids (b, n) -> tokens, of a whole clip unless `num_frames` is given.

        With `num_frames`, they are any steps: `decode` takes them as a clip, and a decoder stream as its next steps.
        `first_step` is their position in the clip, which a decoder stream then checks.
        """
        return self._generated(self.ids_to_indices(ids, grid), num_frames, first_step)

    def tokens_from_patches(
        self, patches: Tensor, grid: TokenGrid, num_frames: int | None = None, *, first_step: int | None = None
    ) -> VideoTokens:
        """Generated patches (b, n, patch_dim) -> tokens; `num_frames` and `first_step` as for `tokens_from_ids`."""
        return self._generated(self._patches_on_grid(patches, grid), num_frames, first_step)

    def _generated(self, values: Tensor, num_frames: int | None, first_step: int | None) -> VideoTokens:
        begin = 0 if first_step is None else first_step
        if num_frames is None:
            frames = self.tokenizer.num_frames(begin + values.shape[1]) - self.tokenizer.num_frames(begin)
            return video_tokens(values, frames, begin)
        return video_tokens(values, num_frames, UNPLACED if first_step is None else first_step)

    def steps(self, tokens: VideoTokens, start: int, stop: int) -> VideoTokens:
        """Steps `start` to `stop` (exclusive) of these tokens, which keep their position in the clip."""
        return cut_steps(self.tokenizer, tokens, start, stop)

    def join_steps(self, parts: Sequence[VideoTokens]) -> VideoTokens:
        """Consecutive steps of a clip -> one `VideoTokens`; each part must begin at the step where the last one ended.

        Clips that were encoded separately all begin at step 0, so they never pass as one stream. The caller must make
        sure that the parts come from the same clip: forked streams share their first steps.

        Example:
            >>> adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny"))
            >>> stream = adapter.stream()
            >>> parts = [stream.push(torch.zeros(1, 3, n, 8, 8)) for n in (2, 7)]
            >>> adapter.join_steps(parts).grid
            TokenGrid(T=3, H=1, W=1)
        """
        return join_steps(self.tokenizer, parts)

    # Discrete tokens

    @property
    def vocabulary(self) -> Vocabulary:
        """The codes and the special tokens; a ValueError for continuous tokens."""
        if self._vocabulary is None:
            raise ValueError("TokenizerAdapter: continuous tokens have no vocabulary; use patches.")
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.vocabulary.size

    @property
    def codebook_size(self) -> int:
        """Number of codes, without special tokens."""
        return self.vocabulary.codebook_size

    @property
    def special_ids(self) -> dict[str, int]:
        """The id of each special token; they come after the codes."""
        return self.vocabulary.special_ids

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Sizes of the factors of a code, whose product is the codebook; least significant first."""
        return self.vocabulary.factor_sizes

    def split(self, ids: Tensor) -> Tensor:
        """Codebook ids (..., n) -> factors (..., n, k): consecutive FSQ levels, least significant first."""
        return self.vocabulary.split(ids)

    def join(self, factors: Tensor) -> Tensor:
        """Factors (..., n, k) -> codebook ids (..., n)."""
        return self.vocabulary.join(factors)

    def indices_to_ids(self, indices: Tensor, grid: TokenGrid) -> Tensor:
        """Codebook indices (b, T, H, W) -> vocabulary ids (b, n)."""
        check_tensor(indices, who="TokenizerAdapter", name="indices")
        if tuple(indices.shape[1:]) != (grid.T, grid.H, grid.W):
            raise ValueError(f"TokenizerAdapter: indices must fill {grid}, got {tuple(indices.shape)}.")
        return rearrange(self.vocabulary.checked_codebook_ids(indices), "b t h w -> b (t h w)")

    def ids_to_indices(self, ids: Tensor, grid: TokenGrid) -> Tensor:
        """Vocabulary ids (b, n) -> codebook indices (b, T, H, W) int64; remove special tokens before."""
        check_tensor(ids, who="TokenizerAdapter", name="codebook ids")
        indices = on_grid(ids, grid, "(b, n)")
        self.vocabulary.checked_codebook_ids(ids)
        return indices.to(torch.int64)

    def sequences(self, tokens: VideoTokens) -> Tensor:
        """Whole clips -> sequences for a language model, each between bos and eos: (b, n + 2) vocabulary ids."""
        check_beginning(tokens, "sequences with bos")
        return to_sequences(tokens.ids, self.vocabulary)

    def tokens_from_sequences(self, sequences: Tensor, grid: TokenGrid, num_frames: int | None = None) -> VideoTokens:
        """Parse sequences (b, m) or (m,) back into the tokens of all clips in them, stacked along the batch.

        A row holds one or more whole clips of that grid, each between bos and eos, and then only pads.

        Raises:
            ValueError: names the first position whose id breaks that rule.
        """
        return self.tokens_from_ids(from_sequences(sequences, grid, self.vocabulary), grid, num_frames, first_step=0)

    # Continuous tokens

    @property
    def patch_dim(self) -> int:
        """Values in a patch: rows times columns of it times latent channels."""
        _, rows, columns = self.config.patch_size
        return rows * columns * self.tokenizer.latent_channels

    @property
    def has_latent_stats(self) -> bool:
        """Whether a KL model's latent statistics differ from the initial mean 0 and std 1."""
        return self.kind == "continuous" and bool((self.latent_mean != 0).any() or (self.latent_std != 1).any())

    def latents_to_patches(self, latents: Tensor) -> Tensor:
        """Latents (b, c, T, H, W) -> normalized patches (b, n, patch_dim)."""
        return rearrange(self._patch(latents), "b t h w d -> b (t h w) d")

    def patches_to_latents(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """Normalized patches (b, n, patch_dim) -> latents (b, c, T, H, W)."""
        return self._unpatch(self._patches_on_grid(patches, grid))

    @torch.no_grad()
    def fit_latent_stats(self, videos: Iterable[Tensor]) -> None:
        """Set the mean and standard deviation of each latent channel to those of videos (b, 3, t, h, w).

        Raises:
            ValueError: a discrete adapter, no video, or latents with NaN or infinite values.
        """
        self._check_continuous()
        mean, std = channel_statistics(self._encode(video).latents for video in videos)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _patch(self, latents: Tensor) -> Tensor:
        self._check_continuous()
        check_latents(latents, self.tokenizer.latent_channels, who="TokenizerAdapter")
        return to_patches(latents, self.latent_mean, self.latent_std, self.config.patch_size)

    def _unpatch(self, patches: Tensor) -> Tensor:
        return from_patches(patches, self.latent_mean, self.latent_std, self.config.patch_size)

    def _patches_on_grid(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        self._check_continuous()
        check_tensor(patches, who="TokenizerAdapter", name="patches")
        values = on_grid(patches, grid, "(b, n, patch_dim)")
        if values.shape[-1] != self.patch_dim:
            raise ValueError(f"TokenizerAdapter: patches must have {self.patch_dim} values, got {values.shape[-1]}.")
        if values.dtype not in FLOATS:
            raise ValueError(
                f"TokenizerAdapter: patches must be floats, got {values.dtype}; ids go to tokens_from_ids."
            )
        return values

    def _check_continuous(self) -> None:
        if self.kind == "discrete":
            raise ValueError("TokenizerAdapter: discrete tokens are ids; patches are for KL models.")


def _check_loaded_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    names = ("latent_mean", "latent_std")
    check_statistics({n: state_dict[prefix + n] for n in names if prefix + n in state_dict}, "the state_dict")
