"""Streams of tokens: frames to tokens and tokens to frames, a few at a time, as a causal VidTok streams."""

from copy import copy
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vidtok_plugin.adapter.boundaries import is_complete
from vidtok_plugin.adapter.precision import full_float32
from vidtok_plugin.adapter.tokens import UNPLACED, VideoTokens

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.tokenizer.streams import Encoded


class TokenStream:
    """Frames in, the tokens of the steps that they complete out; in float32 whatever autocast is on."""

    def __init__(self, adapter: "TokenizerAdapter") -> None:
        self.adapter = adapter
        self._stream = adapter.tokenizer.encoder_stream()
        self._pushed = self._covered = 0  # frames
        self._steps = 0

    @torch.no_grad()
    def push(self, frames: Tensor) -> VideoTokens:
        """Frames (b, 3, n, h, w) -> tokens, perhaps of no step."""
        self.adapter.check_video(frames)
        with full_float32(frames.device):
            encoded = self._stream.push(frames)
        self._pushed += frames.shape[2]
        return self._tokens(encoded)

    @torch.no_grad()
    def flush(self) -> VideoTokens:
        """Ends the stream: completes a last partial group of frames with copies of its last frame."""
        device = self.adapter.tokenizer.device
        with full_float32(device):
            return self._tokens(self._stream.flush())

    def fork(self) -> Self:
        """A copy that goes on independently."""
        twin = copy(self)
        twin._stream = self._stream.fork()
        return twin

    def _tokens(self, encoded: "Encoded") -> VideoTokens:
        # The frames behind these steps: whole groups, but for a last one that flush() completed.
        first, steps, frames_of = self._steps, encoded.latents.shape[2], self.adapter.tokenizer.num_frames
        frames = min(frames_of(first + steps) - frames_of(first), self._pushed - self._covered)
        self._covered += frames
        self._steps += steps
        return self.adapter.tokens_from_latents(encoded.latents, encoded.indices, frames, first)


class TokenDecoderStream:
    """Tokens in, the frames that are final out.

    One clip's tokens, in order: it refuses steps of another place in their clip than the stream's own, so that clips
    that were encoded separately are not decoded as one. Generated tokens that nobody placed go on where the stream is.
    """

    def __init__(self, adapter: "TokenizerAdapter", lookahead: bool) -> None:
        self.adapter = adapter
        self._stream = adapter.tokenizer.decoder_stream(lookahead)
        self._steps = 0
        self._complete = True  # whether the last step that came was of all its frames

    def push(self, tokens: VideoTokens, *, validate: bool = False) -> Tensor:
        """Tokens of some steps -> frames (b, 3, n, h, w).

        Places are checked on the CPU, and on other devices only with `validate`, since it waits for the device.
        """
        if tokens.grid_values.device.type == "cpu" or validate:
            self._check_place(tokens)
        frames = self._stream.push(self.adapter.latents_of(tokens))
        self._steps += tokens.grid.T
        return frames

    def _check_place(self, tokens: VideoTokens) -> None:
        placed = tokens.first_step[tokens.first_step != UNPLACED]
        wrong = placed[placed != self._steps]
        if len(wrong) or (len(placed) and tokens.grid.T and not self._complete):
            where = f"step {int(wrong[0])}" if len(wrong) else f"step {self._steps} after the clip's end"
            raise ValueError(
                f"TokenizerAdapter: a decoder stream takes one clip's steps in order, next step {self._steps}, but got "
                f"tokens from {where} on; give clips that were encoded separately a stream each, or decode() them."
            )
        if len(placed) and tokens.grid.T:
            self._complete = is_complete(self.adapter.tokenizer, tokens, self._steps)

    def flush(self) -> Tensor:
        """Ends the stream: the frames still held back."""
        return self._stream.flush()

    def fork(self) -> Self:
        """A copy that goes on independently."""
        twin = copy(self)
        twin._stream = self._stream.fork()
        return twin
