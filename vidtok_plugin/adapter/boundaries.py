"""Cutting and joining the steps of clips. Joined steps must follow each other in their clip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidtok_plugin.adapter.tokens import UNPLACED, VideoTokens, video_tokens
from vidtok_plugin.tokenizer.model import VidTok


def cut_steps(tokenizer: VidTok, tokens: VideoTokens, start: int, stop: int) -> VideoTokens:
    """Steps `start` to `stop` (exclusive) of these tokens, with their position in the clip and their own frames."""
    steps = tokens.grid.T
    if not 0 <= start <= stop <= steps:
        raise ValueError(
            f"TokenizerAdapter: start and stop must be 0 to {steps} (the tokens have {steps} steps) and in order, got "
            f"{start} and {stop}."
        )
    first = _position(tokens)
    before = tokenizer.num_frames(first)
    ends = [(tokenizer.num_frames(first + step) - before) for step in (start, stop)]
    begin, end = (tokens.num_frames.clamp(max=frames) for frames in ends)
    part = video_tokens(tokens.grid_values[:, start:stop], 0, first + start)
    part.num_frames = end - begin
    return part


def join_steps(tokenizer: VidTok, parts: Sequence[VideoTokens]) -> VideoTokens:
    """Consecutive steps of clips, from streams or `cut_steps`, as one; each part must begin where the last one ended.

    Raises:
        ValueError: a part that begins elsewhere (a clip encoded on its own begins at step 0, so it follows nothing),
            that has no position, that has another kind, batch or grid, or that follows a partly filled step.
    """
    if not parts:
        raise ValueError("TokenizerAdapter: join_steps needs at least one part, got none.")
    first = following = _position(parts[0])
    for number, part in enumerate(parts):
        if _layout(part) != _layout(parts[0]):
            raise ValueError(
                f"TokenizerAdapter: parts to join must be alike in kind, batch, rows and columns, but part {number} "
                f"is {_layout(part)} and part 0 {_layout(parts[0])}."
            )
        position = _position(part)
        if position != following:
            raise ValueError(
                f"TokenizerAdapter: part {number} must begin at step {following} of the clip, but begins at step "
                f"{position}; clips that were encoded separately are not a stream: decode them one by one, or encode "
                "their frames as one clip or with stream()."
            )
        last = sum(other.grid.T for other in parts[number + 1 :]) == 0
        if not last and not is_complete(tokenizer, part, position):
            raise ValueError(
                f"TokenizerAdapter: part {number} ends its clip with a step of fewer than "
                f"{tokenizer.temporal_factor} frames, so no part can follow it."
            )
        following += part.grid.T
    joined = video_tokens(torch.cat([part.grid_values for part in parts], dim=1), 0, first)
    joined.num_frames = torch.stack([part.num_frames for part in parts]).sum(0)
    return joined


def is_complete(tokenizer: VidTok, tokens: VideoTokens, first: int) -> bool:
    """Whether frames fill every step of tokens that begin at step `first`."""
    whole = tokenizer.num_frames(first + tokens.grid.T) - tokenizer.num_frames(first)
    return bool((tokens.num_frames == whole).all())


def check_beginning(tokens: VideoTokens, task: str) -> None:
    """Raise a ValueError if these tokens are later steps of their clips."""
    if (tokens.first_step > 0).any():
        raise ValueError(
            f"TokenizerAdapter: only tokens from the beginning of their clip can be {task}, got steps from "
            f"{int(tokens.first_step.max())} on; join a clip's parts with join_steps, or decode them one after another "
            "with decoder_stream()."
        )


def _position(tokens: VideoTokens) -> int:
    """The step at which all of these tokens begin in their clips."""
    positions: Tensor = tokens.first_step.unique()
    if len(positions) != 1 or int(positions) == UNPLACED:
        got = "several" if len(positions) != 1 else "none"
        raise ValueError(
            f"TokenizerAdapter: tokens to cut or join must have one position in their clips, got {got}; give generated "
            "tokens theirs with tokens_from_ids or tokens_from_patches(..., first_step=...)."
        )
    return int(positions)


def _layout(tokens: VideoTokens) -> tuple[str, int, int, int]:
    return "ids" if tokens.discrete else "patches", tokens.num_frames.shape[0], tokens.grid.H, tokens.grid.W
