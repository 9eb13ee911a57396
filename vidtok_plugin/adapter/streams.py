"""Streams of tokens: frames to tokens and tokens to frames, a few at a time, with a causal VidTok."""

from copy import copy
from typing import Protocol, Self

import torch
from torch import Tensor

from vidtok_plugin.adapter.boundaries import is_complete
from vidtok_plugin.adapter.precision import full_float32
from vidtok_plugin.adapter.tokens import UNPLACED, VideoTokens
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.regularizers import Encoded


class LatentCodec(Protocol):
    """The interface of `TokenizerAdapter` that streams use: its tokenizer, and the map between latents and tokens."""

    tokenizer: VidTok

    def check_video(self, video: Tensor) -> None: ...

    def check_encoder(self, *, values: bool | None = None) -> None: ...

    def check_decoder(self, *, values: bool | None = None) -> None: ...

    def tokens_from_latents(
        self, latents: Tensor, indices: Tensor | None, num_frames: int, first_step: int = 0
    ) -> VideoTokens: ...

    def latents_of(self, tokens: VideoTokens, *, validate: bool = True) -> Tensor: ...


class TokenStream:
    """Takes frames and returns the tokens of the steps that they complete, in float32 even under autocast."""

    def __init__(self, codec: LatentCodec) -> None:
        self._codec = codec
        self._stream = codec.tokenizer.encoder_stream()
        self._pushed = self._covered = 0  # frames
        self._steps = 0

    @torch.no_grad()
    def push(self, frames: Tensor) -> VideoTokens:
        """Frames (b, 3, n, h, w) -> tokens, of no step if they complete none."""
        self._codec.check_video(frames)
        with full_float32(frames.device):
            encoded = self._stream.push(frames)
        self._pushed += frames.shape[2]
        return self._tokens(encoded)

    @torch.no_grad()
    def flush(self) -> VideoTokens:
        """End the stream: complete a last partial group of frames with copies of its last frame."""
        self._codec.check_encoder()
        with full_float32(self._codec.tokenizer.device):
            return self._tokens(self._stream.flush())

    def fork(self, futures: int = 1) -> Self:
        """An independent stream, with `futures` consecutive rows for each of this one's."""
        twin = copy(self)
        twin._stream = self._stream.fork(futures)
        return twin

    def rows(self, rows: slice) -> Self:
        """An independent stream of some of the rows."""
        twin = copy(self)
        twin._stream = self._stream.rows(rows)
        return twin

    def _tokens(self, encoded: Encoded) -> VideoTokens:
        # Every step covers a whole group of frames, except a last one that flush() completed.
        first, steps, frames_of = self._steps, encoded.latents.shape[2], self._codec.tokenizer.num_frames
        frames = min(frames_of(first + steps) - frames_of(first), self._pushed - self._covered)
        self._covered += frames
        self._steps += steps
        return self._codec.tokens_from_latents(encoded.latents, encoded.indices, frames, first)


class TokenDecoderStream:
    """Takes the tokens of one clip, in order, and returns the frames that are final.

    Steps must come in order: the stream refuses tokens whose position in their clip is not its next step, so that clips
    that were encoded separately are not decoded as one. Generated tokens without a position count as the next steps.
    """

    def __init__(self, codec: LatentCodec, lookahead: bool, decoder: VidTok | None = None) -> None:
        self._codec = codec
        self._stream = (decoder or codec.tokenizer).decoder_stream(lookahead)
        self._steps = 0
        self._complete = True  # whether frames fill the last step so far
        self._aligned = True  # whether all rows are at the same step of their clips
        self._outside: Tensor | None = None  # whether ids that were not checked are outside the codebook

    def push(self, tokens: VideoTokens, *, validate: bool = False) -> Tensor:
        """Tokens of some steps -> frames (b, 3, n, h, w).

        Positions are checked on the CPU; on other devices only with `validate`, because the check synchronizes. Ids
        outside the codebook are an error here where positions are checked, else in `flush`.
        """
        self._codec.check_decoder(values=False)
        validate = validate or tokens.grid_values.device.type == "cpu"
        if validate:
            self._check_position(tokens)
        frames = self._stream.push(self._codec.latents_of(tokens, validate=validate))
        size = self._codec.tokenizer.codebook_size
        if not validate and size is not None:
            outside = ((tokens.grid_values < 0) | (tokens.grid_values >= size)).any()
            self._outside = outside if self._outside is None else self._outside | outside
        self._steps += tokens.grid.T
        return frames

    def _check_position(self, tokens: VideoTokens) -> None:
        placed = tokens.first_step[tokens.first_step != UNPLACED]
        if len(placed) and not self._aligned:
            raise ValueError(
                "TokenizerAdapter: a decoder stream whose rows are at different steps takes tokens without a position "
                f"only, got some of step {int(placed[0])}; use a stream for each clip."
            )
        wrong = placed[placed != self._steps]
        if len(wrong) or (len(placed) and tokens.grid.T and not self._complete):
            where = f"step {int(wrong[0])}" if len(wrong) else f"step {self._steps} after the clip's end"
            raise ValueError(
                f"TokenizerAdapter: a decoder stream takes one clip's steps in order, next step {self._steps}, but got "
                f"tokens from {where} on; use a stream for each clip that was encoded separately, or decode()."
            )
        if len(placed) and tokens.grid.T:
            self._complete = is_complete(self._codec.tokenizer, tokens, self._steps)

    def flush(self) -> Tensor:
        """End the stream: the frames that are still held back; a ValueError if ids were outside the codebook."""
        self._codec.check_decoder()
        if self._outside is not None and bool(self._outside):
            raise ValueError(
                f"TokenizerAdapter: codebook ids must be 0 to {self._codec.tokenizer.codebook_size}, exclusive, got "
                "others in an earlier push; push with validate=True to see which."
            )
        return self._stream.flush()

    def replace_rows(self, rows: Tensor, other: Self) -> None:
        """Let the given rows (r,) continue the r rows of another stream; the others go on as they are. Afterwards the
        stream takes tokens without a position only, unless both were at the same step.

        Raises:
            ValueError: the streams don't fit; see `Stream.replace_rows`.
        """
        self._stream.replace_rows(rows, other._stream)
        self._aligned = self._aligned and other._aligned and self._steps == other._steps
        if other._outside is not None:
            self._outside = other._outside if self._outside is None else self._outside | other._outside

    @property
    def num_bytes(self) -> int:
        """Size of the state."""
        return self._stream.num_bytes

    def fork(self, futures: int = 1) -> Self:
        """An independent stream, with `futures` consecutive rows for each of this one's."""
        twin = copy(self)
        twin._stream = self._stream.fork(futures)
        return twin
