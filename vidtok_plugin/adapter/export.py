"""Decoding step by step as programs of `torch.export`, for runtimes without this package.

Two programs share a state, which goes in and comes out: `start` decodes the first steps of a clip, and `step` the next
one. They are `decoder_stream(lookahead=False)`.

Shapes: b clips, T H W steps, rows and columns, p values of a patch, f frames of a step, h w pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import TokenGrid


@dataclass(frozen=True, kw_only=True)
class ExportedDecoder:
    """The programs of `export_decoder`.

    `start.module()(tokens)` takes the first steps (b, T, H, W[, p]) of a clip, and gives their frames
    (b, 3, 1 + (T - 1) f, h, w) in about [-1, 1], and the state. `step.module()(tokens, state)` takes the next step
    (b, 1, H, W[, p]), and gives its frames (b, 3, f, h, w) and the next state. The state is nested dicts of tensors.
    """

    start: ExportedProgram
    step: ExportedProgram


def export_decoder(
    adapter: TokenizerAdapter, *, height: int, width: int, batch: int = 1, first_steps: int = 2
) -> ExportedDecoder:
    """Export the decoding of tokens to frames of `height` x `width` pixels, for `batch` clips, on the adapter's device.

    The sizes are part of the programs, as are `first_steps`, those that `start` takes. The weights are saved in both.

    Raises:
        ValueError: the tokenizer is not causal, the frames are no multiple of its spatial factor, or `start` takes too
            few steps: a tokenizer of v1.1 needs two, after which its state has the same shapes at every step.
    """
    tokenizer = adapter.tokenizer
    least = 2 if tokenizer.architecture.version == "1.1" else 1
    if batch < 1 or first_steps < least:
        raise ValueError(
            f"export_decoder: batch must be at least 1 and first_steps at least {least}, got {batch} and {first_steps}."
        )
    tokenizer.decoder_stream(lookahead=False)  # a ValueError unless it is causal
    grid = adapter.grid(tokenizer.num_frames(first_steps), height, width)
    device = tokenizer.device
    tokens = torch.zeros(batch, grid.T, grid.H, grid.W, dtype=torch.int64, device=device)
    if adapter.kind == "continuous":
        tokens = torch.zeros(*tokens.shape, adapter.patch_dim, dtype=tokenizer.dtype, device=device)
    start, step = _Start(adapter), _Next(adapter)
    with torch.no_grad():
        _, state = start(tokens)
        return ExportedDecoder(
            start=torch.export.export(start, (tokens,)),
            step=torch.export.export(step, (tokens[:, :1].clone(), state)),
        )


class _Decode(nn.Module):
    """Pushes tokens to a stream that begins with a given state."""

    def __init__(self, adapter: TokenizerAdapter) -> None:
        super().__init__()
        self._adapter = [adapter]  # not a module of this one: a program has no use for the encoder's weights
        self.decoder, self.regularization = adapter.tokenizer.decoder, adapter.tokenizer.regularization

    def pushed(self, tokens: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
        (adapter,) = self._adapter
        if adapter.kind == "discrete":
            latents = adapter.tokenizer.indices_to_latents(tokens, validate=False)
        else:
            grid = TokenGrid(*tokens.shape[1:4])
            latents = adapter.patches_to_latents(tokens.flatten(1, 3), grid)
        stream = adapter.tokenizer.decoder_stream(lookahead=False)
        stream._state = state
        frames = stream.push(latents)
        assert stream._state is not None
        return frames, stream._state


class _Start(_Decode):
    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.pushed(tokens, None)


class _Next(_Decode):
    def forward(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.pushed(tokens, state)
