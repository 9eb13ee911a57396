"""Streams: a causal VidTok on video that arrives a few frames at a time; the result equals the whole clip's.

A stream owns its state and the model has none, so any number of streams may run at once on one model. A state is never
changed in place: a fork shares it until one of the two continues.
"""

from copy import copy
from typing import Any, Protocol, Self

import torch
from einops import rearrange, repeat
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.layers import StreamLayer, TimeConv, own
from vidtok_plugin.tokenizer.regularizers import Encoded
from vidtok_plugin.tokenizer.video_checks import as_float_video, check_latents


class StreamedModel(Protocol):
    """The interface of VidTok that streams use."""

    architecture: Architecture

    @property
    def encoder(self) -> StreamLayer: ...

    @property
    def decoder(self) -> StreamLayer: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def regularize(self, z: Tensor, *, validate: bool = False) -> Encoded: ...


class Stream:
    """Base of both streams: a state that the caller can save, move and fork, and an end."""

    def __init__(self, model: StreamedModel, state: TensorDict | None) -> None:
        self.architecture = model.architecture
        if not self.architecture.causal:
            raise ValueError(
                f"{type(self).__name__}: a non-causal VidTok sees later frames, so it cannot run on a stream; "
                "use encode() and decode() on whole clips, or a causal model."
            )
        self.model = model
        self._state: dict[str, Any] | None = _as_dict(state)
        if self._state is not None and self._state.keys() != self._entries():
            raise ValueError(
                f"{type(self).__name__}: the state must come from the same kind of stream of this model, with the "
                f"entries {', '.join(sorted(self._entries()))}, got {', '.join(sorted(self._state))}."
            )
        if self._state is not None:
            self._check_layers(self._state["network"])
        self._ended = False

    def _check_layers(self, states: dict[str, Any]) -> None:
        """A ValueError unless `states` has an entry for each temporal layer: a layer without one would start again."""
        layers = [name for name, layer in self._network().named_modules() if isinstance(layer, TimeConv)]
        owners = [[owner for owner in states if name.startswith(f"{owner}.")] for name in layers]
        if not all(len(owner) == 1 for owner in owners) or len({owner[0] for owner in owners}) != len(states):
            raise ValueError(
                f"{type(self).__name__}: the state must come from a stream of this model, got one of a model with "
                "other layers."
            )

    def _network(self) -> StreamLayer:
        """The network that the stream runs: the encoder or the decoder."""
        raise NotImplementedError

    def _entries(self) -> set[str]:
        """The names of the entries of the state."""
        raise NotImplementedError

    @property
    def state(self) -> TensorDict:
        """Everything that the stream keeps of the past, with batch size (b,); empty before the first push."""
        self._check_open()
        if self._state is None:
            return TensorDict({}, batch_size=[])
        return TensorDict(self._state, batch_size=[_first_tensor(self._state).shape[0]])

    @property
    def num_bytes(self) -> int:
        """Size of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self._state))

    def fork(self, futures: int = 1) -> Self:
        """A stream that continues independently, with `futures` consecutive rows for each of this one's."""
        twin = copy(self)
        if futures != 1 and self._state is not None:
            twin._state = _repeated(self._state, futures)
        return twin

    def rows(self, rows: slice) -> Self:
        """A stream that continues independently with some of the rows."""
        self._check_open()
        twin = copy(self)
        twin._state = _sliced(self._state, rows)
        return twin

    def replace_rows(self, rows: Tensor, other: Self) -> None:
        """Let the given rows (r,) continue the r rows of another stream of this model; the others go on as they are.

        Raises:
            ValueError: one of the streams has no state, or they are at different points within a group of frames. A
                decoder of v1.1 after its first latent is at another point than after any later one.
        """
        own, new = self.state, other.state
        shapes, others = ({key: x.shape[1:] for key, x in s.items(True, True)} for s in (own, new))
        if self.model is not other.model or not shapes or shapes != others or len(new) != len(rows):
            raise ValueError(
                f"{type(self).__name__}: rows must come from a stream of the same model, with frames of the same size "
                f"and at the same point within a group, and be as many; got {len(new)} rows for {len(rows)}."
            )
        self._state = _with_rows(self._state, rows, other._state)

    def to(self, device: torch.device | str) -> Self:
        """Moves the state (the model stays where it is) and returns the stream."""
        if self._state is not None and not self._ended:
            self._state = _as_dict(self.state.to(device))
        return self

    def _check_open(self) -> None:
        if self._ended:
            raise ValueError(f"{type(self).__name__}: the stream has been flushed; start a new one.")

    def _check_fits(self, x: Tensor, before: Tensor, what: str) -> None:
        """A ValueError unless `x` (b, t, h, w, c) has the batch and the size of `before`, a tensor of the state."""
        (b, _, h, w, _), (got_b, _, got_h, got_w, _) = before.shape, x.shape
        if got_b != b:
            raise ValueError(f"{type(self).__name__}: the stream has batches of {b}, got {got_b}.")
        if (got_h, got_w) != (h, w):
            raise ValueError(
                f"{type(self).__name__}: the stream has {what} of {h} x {w}, got {got_h} x {got_w}; "
                "start a stream for each size."
            )


class EncoderStream(Stream):
    """Takes frames and returns the latents that they complete.

    The first frame gives the first latent, and every f further frames give another.

    State: the frames of the current group (fewer than f), and the earlier frames that each layer still needs: two for a
    convolution with kernel 3 in time, one for a temporal downsampling. Exact results need all of them: 515 MB in
    float32 for the published 4x8x8 models at 256x256.

    Example:
        >>> from vidtok_plugin import VidTok
        >>> stream = VidTok.from_preset("vidtok_kl_causal_488_4chn", ch=4).encoder_stream()
        >>> [stream.push(torch.zeros(1, 3, n, 8, 8)).latents.shape[2] for n in (1, 3, 1)]
        [1, 0, 1]
        >>> stream.flush().latents.shape[2]
        0
    """

    def _network(self) -> StreamLayer:
        return self.model.encoder

    def _entries(self) -> set[str]:
        return {"pending", "network"}

    def push(self, frames: Tensor, *, validate: bool = False) -> Encoded:
        """Frames (b, 3, n, h, w), n >= 1 -> the latents that they complete, perhaps T = 0."""
        self._check_open()
        arch = self.architecture
        video = as_float_video(
            frames,
            who="EncoderStream",
            spatial_factor=arch.spatial_factor,
            dtype=self.model.dtype,
            validate=validate,
        )
        x = rearrange(video, "b c t h w -> b t h w c")
        if self._state is None:
            x = torch.cat([repeat(x[:, :1], "b 1 h w c -> b n h w c", n=arch.temporal_factor - 1), x], dim=1)
        else:
            self._check_fits(x, self._state["pending"], "frames")
            x = torch.cat([self._state["pending"], x], dim=1)
        return self._encode_groups(x, validate)

    def flush(self) -> Encoded:
        """Ends the stream: completes a last partial group with copies of its last frame, as `encode` does."""
        if self._state is None or self._ended:
            raise ValueError("EncoderStream: nothing to flush; push frames first.")
        x = self._state["pending"]
        if x.shape[1]:
            missing = self.architecture.temporal_factor - x.shape[1]
            x = torch.cat([x, repeat(x[:, -1:], "b 1 h w c -> b n h w c", n=missing)], dim=1)
        encoded = self._encode_groups(x, validate=False)
        self._ended = True
        return encoded

    def _encode_groups(self, x: Tensor, validate: bool) -> Encoded:
        f, network = self.architecture.temporal_factor, None if self._state is None else self._state["network"]
        whole = x.shape[1] // f * f
        x, pending = x[:, :whole], x[:, whole:]
        if whole == 0:
            assert self._state is not None  # the first frame completes a group
            self._state = {"pending": own(pending), "network": network}
            return self._no_latents(x)
        z, network = self.model.encoder.step(x, network, last=False)
        self._state = {"pending": own(pending), "network": network}
        return self.model.regularize(rearrange(z, "b t h w c -> b c t h w"), validate=validate)

    def _no_latents(self, x: Tensor) -> Encoded:
        b, _, h, w, _ = x.shape
        arch = self.architecture
        shape = (0, h // arch.spatial_factor, w // arch.spatial_factor)
        indices = None
        if arch.codebook_size is not None:
            indices = torch.zeros(b, *shape, dtype=torch.int64, device=x.device)
        return Encoded(latents=x.new_zeros(b, arch.latent_channels, *shape), indices=indices)


class DecoderStream(Stream):
    """Takes latents and returns the frames that are final, in whole groups.

    After k >= 1 latents, v1.0 has given `1 + (k - 1) f` frames. v1.1 interpolates linearly in time, so a group of
    frames is final once the next latent is known: it has given `1 + max(0, k - 2) f`, and `flush()` gives the rest.
    With `lookahead=False` v1.1 also gives each group at once, decoded as if the stream ended there. The last frames
    before each seam then differ a little from the whole clip's; no later frame does.

    State: the earlier frames that each layer still needs, two for a convolution with kernel 3 in time; in v1.1 also
    three products of the frame from which each linear interpolation continues, the frames of the next group that are
    known already, and `lookahead`. For the published 4x8x8 models at 256x256 that is 1.0 GB (v1.0) or 1.3 GB (v1.1) in
    float32. Under `reference_path()` upsampling layers keep other tensors (`TemporalUpsample`): a stream must stay
    inside it or outside, and a push that crosses is a ValueError.

    Example:
        >>> from vidtok_plugin import VidTok
        >>> stream = VidTok.from_preset("vidtok_kl_causal_488_4chn_v1_1", ch=4).decoder_stream()
        >>> [stream.push(torch.zeros(1, 4, 1, 1, 1)).shape[2] for _ in range(3)], stream.flush().shape[2]
        ([1, 0, 4], 4)
    """

    def __init__(self, model: StreamedModel, lookahead: bool, state: TensorDict | None) -> None:
        self._waits = model.architecture.version == "1.1"  # for the next latent
        super().__init__(model, state)
        self.lookahead = lookahead
        if self._waits and self._state is not None and bool(self._state["lookahead"].all()) != lookahead:
            raise ValueError(
                f"DecoderStream: lookahead must be the value with which the state was made, {not lookahead}, "
                f"got {lookahead}; a change within a stream would lose or repeat a group of frames."
            )

    def _network(self) -> StreamLayer:
        return self.model.decoder

    def _entries(self) -> set[str]:
        return {"ready", "network", "lookahead"} if self._waits else {"ready", "network"}

    def replace_rows(self, rows: Tensor, other: Self) -> None:
        if self.lookahead != other.lookahead:
            raise ValueError(f"DecoderStream: lookahead must be {self.lookahead} for all rows, got {other.lookahead}.")
        super().replace_rows(rows, other)

    def push(self, latents: Tensor) -> Tensor:
        """Latents (b, c, T, H, W) -> the frames (b, 3, n, h, w) that are final now."""
        self._check_open()
        check_latents(latents, self.architecture.latent_channels, who="DecoderStream")
        if latents.shape[0] == 0:
            raise ValueError(f"DecoderStream: latents must have at least one clip, got {tuple(latents.shape)}.")
        if latents.shape[2] == 0:
            return self._no_frames(latents)
        f, before, first = self.architecture.temporal_factor, self._state, self._state is None
        x = rearrange(latents.to(self.model.dtype), "b c t h w -> b t h w c")
        if before is not None:
            self._check_fits(x, before["network"]["conv_in"], "latents")
        y, network = self._step(x, before, last=False)
        if self._waits and not self.lookahead:
            self._state = self._new_state(y[:, :0], network)
            y = torch.cat([y, self._last_frames(self._state)], dim=1)
            count = x.shape[1] * f - (f - 1) * first
            return rearrange(y[:, y.shape[1] - count :], "b t h w c -> b c t h w")
        # The first f - 1 frames belong to the padding before the first one.
        ready = y[:, f - 1 :] if before is None else torch.cat([before["ready"], y], dim=1)
        # v1.1 has a frame of the next group already. It stays here, so that whole groups go out.
        whole = ready.shape[1] - (ready.shape[1] - first) % f
        self._state = self._new_state(ready[:, whole:], network)
        return rearrange(ready[:, :whole], "b t h w c -> b c t h w")

    def flush(self) -> Tensor:
        """Ends the stream: the frames (b, 3, n, h, w) still held back; none without lookahead."""
        if self._state is None or self._ended:
            raise ValueError("DecoderStream: nothing to flush; push latents first.")
        ready = self._state["ready"]
        if self._waits and self.lookahead:
            ready = torch.cat([ready, self._last_frames(self._state)], dim=1)
        self._ended = True
        return rearrange(ready, "b t h w c -> b c t h w")

    def _new_state(self, ready: Tensor, network: Any) -> dict[str, Any]:
        state = {"ready": own(ready), "network": network}
        if self._waits:
            state["lookahead"] = torch.full((len(ready),), self.lookahead, device=ready.device)
        return state

    def _last_frames(self, state: dict[str, Any]) -> Tensor:
        """The frames (b, t, h, w, 3) that the network holds back, as they are if the stream ends here."""
        no_latents = state["network"]["conv_in"][:, :0]
        return self._step(no_latents, state, last=True)[0]

    def _step(self, x: Tensor, state: dict[str, Any] | None, last: bool) -> tuple[Tensor, Any]:
        return self.model.decoder.step(x, None if state is None else state["network"], last)

    def _no_frames(self, latents: Tensor) -> Tensor:
        b, _, _, h, w = latents.shape
        s = self.architecture.spatial_factor
        return latents.new_zeros(b, 3, 0, h * s, w * s, dtype=self.model.dtype)


def _as_dict(state: TensorDict | None) -> dict[str, Any] | None:
    if state is None or state.is_empty():
        return None
    return state.to_dict()


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return [] if state is None else [state]


def _repeated(state: Any, times: int) -> Any:
    """The state with each row repeated, copies next to each other."""
    if isinstance(state, dict):
        return {name: _repeated(value, times) for name, value in state.items()}
    return None if state is None else state.repeat_interleave(times, dim=0)


def _sliced(state: Any, rows: slice) -> Any:
    if isinstance(state, dict):
        return {name: _sliced(value, rows) for name, value in state.items()}
    return None if state is None else state[rows]


def _with_rows(state: Any, rows: Tensor, other: Any) -> Any:
    """A copy of the state with some rows (r,) replaced by those of another one."""
    if isinstance(state, dict):
        return {name: _with_rows(value, rows, other[name]) for name, value in state.items()}
    return None if state is None else state.index_copy(0, rows, other)


def _first_tensor(state: dict[str, Any]) -> Tensor:
    for value in state.values():
        return _first_tensor(value) if isinstance(value, dict) else value
    raise AssertionError("a state has tensors")
