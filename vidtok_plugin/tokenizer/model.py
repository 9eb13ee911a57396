"""VidTok: the tokenizer that users build, load, call and save."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange, repeat
from tensordict import TensorDict
from torch import Tensor, nn

from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.hub_push import PushedToHub
from vidtok_plugin.common.hub_source import HubOptions
from vidtok_plugin.common.model_card import CardInfo
from vidtok_plugin.common.tensor_checks import as_int64, check_range
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.encoder_decoder import Decoder, Encoder
from vidtok_plugin.tokenizer.presets import get_preset
from vidtok_plugin.tokenizer.regularizers import FSQ, KL, Encoded, Regularized, check_finite
from vidtok_plugin.tokenizer.streams import DecoderStream, EncoderStream
from vidtok_plugin.tokenizer.video_checks import as_float_video, check_latents
from vidtok_plugin.tokenizer.weights import weights as weights_io


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The result of encoding and decoding a video."""

    reconstruction: Tensor  # the video's shape
    latents: Tensor  # (b, c, T, H, W)
    indices: Tensor | None  # (b, T, H, W); None for KL
    regularizer_terms: dict[str, Tensor] | None  # unweighted, by name; None in eval mode


class VidTok(PushedToHub, nn.Module):
    """A VidTok autoencoder (arXiv 2412.13061): video `(b, 3, t, h, w)` in [-1, 1] <-> latents `(b, c, T, H, W)`.

    Example:
        >>> tok = VidTok.from_preset("vidtok_fsq_causal_488_32768", ch=4).eval()
        >>> encoded = tok.encode(torch.zeros(1, 3, 17, 16, 16))
        >>> encoded.indices.shape, tok.decode(encoded.latents).shape
        (torch.Size([1, 5, 2, 2]), torch.Size([1, 3, 17, 16, 16]))
    """

    saved_files = weights_io.SAVED_FILES

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.regularization = FSQ(architecture.fsq_levels) if architecture.fsq_levels is not None else KL()

    # Creating, loading and saving

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """A model of that preset with random weights; keywords override fields of its `Architecture`."""
        return cls(override_architecture(get_preset(name).architecture, overrides))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        preset: str | None = None,
        *,
        weights: Literal["ema", "raw"] | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """A model with the weights of `source`, in eval mode.

        It has them in float32 (or float64, if that is PyTorch's default), and on the CPU where PyTorch would create it
        on the meta device, as a Hugging Face model's `from_pretrained` does with its parts.

        source: a preset's name, a folder written by `save_pretrained`, a `.ckpt` (published, or from our own training)
            or a `.safetensors` file, or `user/name` on the Hugging Face hub, where `push_to_hub` put it. A published
            name is read from `$VIDTOK_HOME/NAME.ckpt` if that file exists (by default
            `~/.cache/vidtok_plugin/NAME.ckpt`), else downloaded from the Hugging Face hub and cached. A bare weights
            file needs `preset`. Loading never runs code from a file.
        weights: which weights of a checkpoint from our own training: averaged ("ema") or "raw"; by default the averaged
            ones if it has any.
        revision: branch, tag or commit on the hub; the newest by default. `user/name@revision` says the same.
        subfolder: of the repository on the hub.
        token: for private repositories; by default that of `hf auth login` or HF_TOKEN.
        local_files_only: use the hub's cache, without a connection.
        overrides: fields of the `Architecture`.

        Raises:
            FileNotFoundError: if there is no such file, folder or repository, or the hub cannot be reached.
            PermissionError: if the login may not read the repository.
            ValueError: if there is no such preset, or the file is damaged, could only be loaded by running code, or has
                missing, unexpected or wrongly shaped weights, or some that are NaN, infinite, huge, or no floats.

        Example:
            >>> VidTok.from_pretrained("vidtok_tiny").codebook_size
            1000
        """
        options = HubOptions(revision=revision, subfolder=subfolder, token=token, local_files_only=local_files_only)
        architecture, state_dict = weights_io.load(source, preset, averaging=weights, options=options)
        chosen = override_architecture(architecture, overrides)
        with _float32_unless_double():
            return weights_io.build_strictly(lambda: cls(chosen), state_dict, source).eval()

    def save_pretrained(self, folder: str | Path, *, card: CardInfo | Literal[False] | None = None) -> None:
        """Writes `model.safetensors`, `config.yaml` and a model card, `README.md`, into `folder`.

        card: what the card says beyond the architecture; False writes none. A card that was edited is kept.
        """
        weights_io.save(folder, self.architecture, self.state_dict(), card)

    # Training settings

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Activation checkpointing: keep only what passes between layers, and recompute the rest in the backward pass.

        Gradients don't change, bit for bit where operations are deterministic. A training step takes up to a third more
        time and far less memory (`docs/training.md`). Streams, and runs without gradients, are not affected.

        Example:
            >>> tok = VidTok.from_preset("vidtok_tiny")
            >>> tok.checkpoint_activations()
            >>> tok(torch.zeros(1, 3, 5, 16, 16)).reconstruction.mean().backward()
        """
        self.encoder.recompute = self.decoder.recompute = enabled

    def compile_networks(self, *, backend: str = "inductor", mode: str | None = None) -> None:
        """Compiles encoder and decoder in place (`torch.compile`), each as one graph for each size of clip.

        A size is compiled when it first occurs, once with gradients and once without. PyTorch refuses more than 8
        graphs, and so more than 4 sizes in a run that validates.

        Whole clips run compiled, with or without gradients; streams do not, nor does a network whose layers have
        forward hooks. The state_dict doesn't change. A copy of the model is not compiled.

        backend, mode: passed to `torch.compile`.
        """
        for function in (rearrange, repeat):  # one operation each: tracing their Python takes four times as long
            torch.compiler.allow_in_graph(function)
        for network in (self.encoder, self.decoder):
            network.compiled = torch.compile(network.body, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    # Sizes

    @property
    def causal(self) -> bool:
        """Whether a latent depends on frames up to its own only, so that the model streams."""
        return self.architecture.causal

    @property
    def temporal_factor(self) -> int:
        """Frames for each latent step, f."""
        return self.architecture.temporal_factor

    @property
    def spatial_factor(self) -> int:
        """Pixels of a side for each latent."""
        return self.architecture.spatial_factor

    @property
    def latent_channels(self) -> int:
        """Channels c of the latents."""
        return self.architecture.latent_channels

    @property
    def codebook_size(self) -> int | None:
        """Number of codes; None for KL."""
        return self.architecture.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.parameters()).dtype

    def num_latents(self, num_frames: int) -> int:
        """Latent steps of a clip: `1 + ceil((t - 1) / f)` if causal, else `ceil(t / f)`."""
        return self.architecture.num_latents(num_frames)

    def num_frames(self, num_latents: int) -> int:
        """Frames to which latent steps decode: `1 + (T - 1) f` if causal, else `T f`."""
        f = self.temporal_factor
        return max(0, 1 + (num_latents - 1) * f) if self.causal else num_latents * f

    # Whole clips

    def encode(
        self,
        video: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
    ) -> Encoded:
        """Video (b, 3, t, h, w) -> latents (b, c, T, H, W), and indices (b, T, H, W) for FSQ.

        A clip that doesn't fill its last group of frames is completed with copies of its last frame. A KL model gives
        the posterior's mean, or with `sample` a sample drawn with `generator`.
        """
        if (sample or generator is not None) and self.codebook_size is not None:
            raise ValueError("VidTok: sample and generator are for KL models; FSQ codes are deterministic.")
        if generator is not None and not sample:
            raise ValueError("VidTok: a generator draws a sample; add sample=True or leave it out.")
        z = self._encode(self._check(video, validate))
        return self.regularize(z, sample=sample, generator=generator, validate=validate)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, c, T, H, W) -> video (b, 3, num_frames(T), h, w), about [-1, 1]."""
        check_latents(latents, self.latent_channels, who="VidTok")
        if latents.numel() == 0:
            raise ValueError(
                f"VidTok: latents must have at least one clip, step, row and column, got {tuple(latents.shape)}."
            )
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        x = rearrange(latents.to(self.dtype), "b c t h w -> b t h w c")
        y = rearrange(self.decoder(x), "b t h w c -> b c t h w")
        return y[:, :, y.shape[2] - self.num_frames(latents.shape[2]) :]

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, T, H, W), integers -> video (b, 3, num_frames(T), h, w); FSQ models only.

        Raises:
            ValueError: an index outside the codebook, on any device, or a KL model.
        """
        return self.decode(self.indices_to_latents(indices))

    def indices_to_latents(self, indices: Tensor, *, validate: bool = True) -> Tensor:
        """Indices (b, T, H, W) -> quantized latents (b, c, T, H, W); FSQ models only.

        `validate=False` leaves out the check of the values, which waits for the device.
        """
        size = self.codebook_size
        if not isinstance(self.regularization, FSQ) or size is None:
            raise ValueError("VidTok: a KL model has no indices; decode its latents.")
        indices = as_int64(indices, who="VidTok", name="indices")
        if validate:
            check_range(indices, size, who="VidTok", name="indices")
        return self.regularization.indices_to_latents(indices)

    def forward(self, video: Tensor) -> Reconstruction:
        """Encodes and decodes. In training mode a KL model samples, and the result has the regularizer's loss terms."""
        z = self._encode(self._check(video, validate=False))
        regularized: Regularized = self.regularization(z, sample=self.training, with_terms=self.training)
        reconstruction = self._decode(regularized.latents)
        return Reconstruction(
            reconstruction=reconstruction[:, :, : video.shape[2]],
            latents=regularized.latents,
            indices=regularized.indices,
            regularizer_terms=regularized.terms,
        )

    # Streams

    def encoder_stream(self, state: TensorDict | None = None) -> EncoderStream:
        """A stream of frames to latents, new or continued from a stream's `state`; causal models only."""
        return EncoderStream(self, state)

    def decoder_stream(self, lookahead: bool = True, state: TensorDict | None = None) -> DecoderStream:
        """A stream of latents to frames; `lookahead=False` never waits for the next latent (see `DecoderStream`)."""
        return DecoderStream(self, lookahead, state)

    def regularize(
        self, z: Tensor, *, sample: bool = False, generator: torch.Generator | None = None, validate: bool = False
    ) -> Encoded:
        """The encoder's output (b, c, T, H, W) -> latents and indices; a ValueError if it is not finite.

        Values are checked on the CPU, and on other devices only with `validate`.
        """
        if z.device.type == "cpu" or validate:
            check_finite(z)
        regularized: Regularized = self.regularization(z, sample=sample, generator=generator, with_terms=False)
        return Encoded(latents=regularized.latents, indices=regularized.indices)

    def _check(self, video: Tensor, validate: bool) -> Tensor:
        return as_float_video(
            video, who="VidTok", spatial_factor=self.spatial_factor, dtype=self.dtype, validate=validate
        )

    def _encode(self, video: Tensor) -> Tensor:
        x = rearrange(video, "b c t h w -> b t h w c")
        missing = self.num_frames(self.num_latents(x.shape[1])) - x.shape[1]
        front = self.temporal_factor - 1 if self.causal else 0
        x = torch.cat([_copies(x[:, :1], front), x, _copies(x[:, -1:], missing)], dim=1)
        return rearrange(self.encoder(x), "b t h w c -> b c t h w")


def count_parameters(architecture: Architecture) -> int:
    """Number of weights and biases of a VidTok, without allocating them.

    Example:
        >>> count_parameters(get_preset("vidtok_tiny").architecture)
        1805595
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VidTok(architecture).parameters())


def override_architecture(architecture: Architecture, overrides: dict[str, Any]) -> Architecture:
    """`architecture` with some fields replaced; an unknown field is a ValueError that names the nearest."""
    known = [field.name for field in fields(Architecture)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"VidTok: no architecture setting {name!r}; the nearest is {nearest(name, known)!r}.")
    # YAML has lists where an Architecture has tuples.
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return replace(architecture, **settings)


@contextmanager
def _float32_unless_double() -> Iterator[None]:
    """Inside, the default dtype is float32 if it was a half-precision one, which would round weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if before == torch.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _copies(frame: Tensor, count: int) -> Tensor:
    return repeat(frame, "b 1 h w c -> b n h w c", n=count)
