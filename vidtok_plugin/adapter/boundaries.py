"""Where clips begin and end: steps are cut from a clip and joined to one again only at the places that they are of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidtok_plugin.adapter.tokens import UNPLACED, VideoTokens, video_tokens
from vidtok_plugin.tokenizer.model import VidTok


def cut_steps(tokenizer: VidTok, tokens: VideoTokens, start: int, stop: int) -> VideoTokens:
    """Steps `start` to `stop` (not with it) of these tokens, with their place in the clip and their own frames."""
    steps = tokens.grid.T
    if not 0 <= start <= stop <= steps:
        raise ValueError(f"TokenizerAdapter: steps must be cut within the tokens' 0 to {steps}, got {start} to {stop}.")
    first = _place(tokens)
    before = tokenizer.num_frames(first)
    ends = [(tokenizer.num_frames(first + step) - before) for step in (start, stop)]
    begin, end = (tokens.num_frames.clamp(max=frames) for frames in ends)
    part = video_tokens(tokens.grid_values[:, start:stop], 0, first + start)
    part.num_frames = end - begin
    return part


def join_steps(tokenizer: VidTok, parts: Sequence[VideoTokens]) -> VideoTokens:
    """Parts of clips, as streams and `cut_steps` give them, as one: each must go on where the one before it ends.

    Raises:
        ValueError: a part that begins elsewhere (a clip encoded on its own begins at step 0, so it follows nothing),
            that nobody placed, of another batch or grid, or after the clip's last, partly filled step.
    """
    if not parts:
        raise ValueError("TokenizerAdapter: join_steps needs at least one part, got none.")
    first = following = _place(parts[0])
    for number, part in enumerate(parts):
        if _layout(part) != _layout(parts[0]):
            raise ValueError(
                f"TokenizerAdapter: parts to join must be alike in kind, batch, rows and columns, but part {number} "
                f"is {_layout(part)} and part 0 {_layout(parts[0])}."
            )
        place = _place(part)
        if place != following:
            raise ValueError(
                f"TokenizerAdapter: part {number} must go on at step {following} of the clip, but begins with step "
                f"{place}; clips that were encoded separately are no stream: decode them one by one, or encode their "
                "frames as one clip or stream()."
            )
        last = number + 1 == len(parts) or sum(other.grid.T for other in parts[number + 1 :]) == 0
        if not last and not is_complete(tokenizer, part, place):
            raise ValueError(
                f"TokenizerAdapter: part {number} ends its clip with a step of fewer frames than "
                f"{tokenizer.temporal_factor}, so no part can follow it."
            )
        following += part.grid.T
    joined = video_tokens(torch.cat([part.grid_values for part in parts], dim=1), 0, first)
    joined.num_frames = torch.stack([part.num_frames for part in parts]).sum(0)
    return joined


def is_complete(tokenizer: VidTok, tokens: VideoTokens, first: int) -> bool:
    """Whether frames fill all of the steps, of tokens that begin with step `first`."""
    whole = tokenizer.num_frames(first + tokens.grid.T) - tokenizer.num_frames(first)
    return bool((tokens.num_frames == whole).all())


def check_beginning(tokens: VideoTokens, task: str) -> None:
    """A ValueError if these tokens are later steps of their clips."""
    if (tokens.first_step > 0).any():
        raise ValueError(
            f"TokenizerAdapter: only tokens from their clip's beginning can be {task}, got steps from "
            f"{int(tokens.first_step.max())} on; join_steps puts a clip's parts together, and decoder_stream() decodes "
            "them one after another."
        )


def _place(tokens: VideoTokens) -> int:
    """The step of their clips that all of these tokens begin with."""
    places: Tensor = tokens.first_step.unique()
    if len(places) != 1 or int(places) == UNPLACED:
        got = "several" if len(places) != 1 else "none"
        raise ValueError(
            f"TokenizerAdapter: tokens to cut or join must have one place in their clips, got {got}; tokens that a "
            "generator made take it from tokens_from_ids or tokens_from_patches(..., first_step=...)."
        )
    return int(places)


def _layout(tokens: VideoTokens) -> tuple[str, int, int, int]:
    return "ids" if tokens.discrete else "patches", tokens.num_frames.shape[0], tokens.grid.H, tokens.grid.W
