"""Streams of tokens: frames to tokens and tokens to frames, a few at a time, as a causal VidTok streams."""

from copy import copy
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vidtok_plugin.adapter.tokens import VideoTokens

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.tokenizer.streams import Encoded


class TokenStream:
    """Frames in, the tokens of the steps that they complete out; in float32 whatever autocast is on."""

    def __init__(self, adapter: "TokenizerAdapter") -> None:
        self.adapter = adapter
        self._stream = adapter.tokenizer.encoder_stream()
        self._pushed = self._covered = 0  # frames

    @torch.no_grad()
    def push(self, frames: Tensor) -> VideoTokens:
        """Frames (b, 3, n, h, w) -> tokens, perhaps of no step."""
        self.adapter.check_video(frames)
        with torch.autocast(frames.device.type, enabled=False):
            encoded = self._stream.push(frames)
        self._pushed += frames.shape[2]
        return self._tokens(encoded)

    @torch.no_grad()
    def flush(self) -> VideoTokens:
        """Ends the stream: completes a last partial group of frames with copies of its last frame."""
        device = self.adapter.tokenizer.device
        with torch.autocast(device.type, enabled=False):
            return self._tokens(self._stream.flush())

    def fork(self) -> Self:
        """A copy that goes on independently."""
        twin = copy(self)
        twin._stream = self._stream.fork()
        return twin

    def _tokens(self, encoded: "Encoded") -> VideoTokens:
        # The frames behind these steps: whole groups, but for a last one that flush() completed.
        steps, f = encoded.latents.shape[2], self.adapter.temporal_factor
        groups = steps * f - (f - 1 if self._covered == 0 and steps else 0)
        frames = min(groups, self._pushed - self._covered)
        self._covered += frames
        return self.adapter.tokens_from_latents(encoded.latents, encoded.indices, frames)


class TokenDecoderStream:
    """Tokens in, the frames that are final out."""

    def __init__(self, adapter: "TokenizerAdapter", lookahead: bool) -> None:
        self.adapter = adapter
        self._stream = adapter.tokenizer.decoder_stream(lookahead)

    def push(self, tokens: VideoTokens) -> Tensor:
        """Tokens of some steps -> frames (b, 3, n, h, w)."""
        return self._stream.push(self.adapter.latents_of(tokens))

    def flush(self) -> Tensor:
        """Ends the stream: the frames still held back."""
        return self._stream.flush()

    def fork(self) -> Self:
        """A copy that goes on independently."""
        twin = copy(self)
        twin._stream = self._stream.fork()
        return twin
