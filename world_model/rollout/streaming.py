"""Imagined video for play: each latent step's frames as soon as they are drawn, before the player's next actions.

Shapes: b rollouts, t h w frames and pixels, f frames a latent step, a components of a continuous action.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.checks import (
    check_adapter,
    check_num_frames,
    check_prompt,
    check_rollout_actions,
    check_step_actions,
)
from world_model.rollout.tokens import encode_prompt, video_tokens_of

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

Policy = Callable[[Tensor], Tensor]


def stream_rollout(
    model: WorldModel,
    adapter: "TokenizerAdapter",
    *,
    prompt: Tensor,
    policy: Policy | None = None,
    actions: Tensor | None = None,
    num_frames: int | None = None,
    sampler: Sampler | None = None,
    decoding: Decoding | None = None,
    indices: Sequence[int] | None = None,
    validate: bool = False,
) -> Iterator[Tensor]:
    """Imagine step by step, for play: each latent step's f frames (b, 3, f, h, w) as soon as they are drawn.

    `policy(frames)` gets the newest f frames (at first the prompt's; a prompt of one frame is repeated) and
    returns the f actions that lead on, (b, f) or (b, f, a); leave it out for a model without actions.
    `actions` are those of the prompt, one for each frame; without them the model isn't told how the prompt
    came about. Frames are decoded without lookahead, since the next step waits for the player. It ends after
    `num_frames`, or never without it.
    """
    # Checked here, not at the first frame: a generator's body would wait for it.
    check_adapter(model, adapter, "stream_rollout")
    video = check_prompt(model, adapter, prompt, "stream_rollout", validate=validate)
    batch, _, prompt_frames = video.shape[:3]
    if num_frames is not None:
        check_num_frames(num_frames, model.tokens.temporal_factor, "stream_rollout")
    acts = model.tokens.actions.kind != "none"
    if acts != (policy is not None):
        raise ValueError(
            f"stream_rollout: policy must be {'given, since' if acts else 'left out, unless'} the world "
            f"model learned actions, got {policy}."
        )
    if actions is None and acts:
        past: GroupedActions | None = _unknown_actions(model, batch, prompt_frames)
    else:
        past = check_rollout_actions(
            model, actions, batch, prompt_frames, "those of the prompt", "stream_rollout", validate=validate
        )
    tokens = encode_prompt(model, adapter, video)
    generator = StepGenerator(model, tokens, past, sampler or Sampler(), indices, decoding=decoding)
    return _stream(adapter, video, tokens, generator, policy, num_frames, validate)


def _stream(
    adapter: "TokenizerAdapter",
    video: Tensor,
    tokens: Tensor,
    generator: StepGenerator,
    policy: Policy | None,
    num_frames: int | None,
    validate: bool,
) -> Iterator[Tensor]:
    model, batch, f = generator.model, video.shape[0], adapter.temporal_factor
    decoder = adapter.decoder_stream(lookahead=False)
    decoder.push(video_tokens_of(adapter, tokens, video.shape[2]))
    frames = video[:, :, -f:]
    frames = torch.cat([frames[:, :, :1].expand(-1, -1, f - frames.shape[2], -1, -1), frames], dim=2)
    given = 0
    while num_frames is None or given < num_frames:
        actions = None
        if policy is not None:
            actions = check_step_actions(model, policy(frames), batch, "stream_rollout", validate=validate)
        frames = decoder.push(video_tokens_of(adapter, generator.step(actions)[:, None], f)).clamp(-1, 1)
        given += f
        yield frames


def _unknown_actions(model: WorldModel, batch: int, frames: int) -> GroupedActions:
    spec, f = model.tokens.actions, model.tokens.temporal_factor
    shape = (batch, 1 + (frames - 1) // f, f)
    values = (
        torch.zeros(shape, dtype=torch.int64, device=model.device)
        if spec.kind == "discrete"
        else torch.zeros(*shape, spec.size, device=model.device)
    )
    return GroupedActions(values=values, known=torch.zeros(shape, dtype=torch.bool, device=model.device))
