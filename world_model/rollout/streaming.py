"""Interactive rollouts: yields the frames of each latent step before it asks the player for the next actions.

Shapes: b rollouts, t h w frames and pixels, f frames per latent step, a components of a continuous action.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
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

Policy = Callable[[Tensor], Tensor]


def stream_rollout(
    model: WorldModel,
    adapter: TokenizerAdapter,
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
    """Imagine step by step, for interactive play: yields the f frames (b, 3, f, h, w) of each latent step.

    `policy(frames)` receives the newest f frames and returns the f actions of the next step, (b, f) or (b, f, a). The
    first call gets the last frames of the prompt; a prompt of one frame is repeated. Leave `policy` out for a model
    without actions. `actions` are the actions of the prompt, one per frame; without them the model treats them as
    unknown. Frames are decoded without lookahead, because the next step waits for the player. The stream ends after
    `num_frames` frames, or never if that is None.
    """
    # A generator function would run these checks only when its first frame is asked for.
    check_adapter(model, adapter, "stream_rollout")
    video = check_prompt(model, adapter, prompt, "stream_rollout", validate=validate)
    batch, _, prompt_frames = video.shape[:3]
    if num_frames is not None:
        check_num_frames(num_frames, model.tokens.temporal_factor, "stream_rollout")
    acts = model.tokens.actions.kind != "none"
    if acts != (policy is not None):
        raise ValueError(
            f"stream_rollout: policy must be {'given' if acts else 'left out'}, since the world model was trained "
            f"{'with' if acts else 'without'} actions, got {policy}."
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
    adapter: TokenizerAdapter,
    video: Tensor,
    tokens: Tensor,
    generator: StepGenerator,
    policy: Policy | None,
    num_frames: int | None,
    validate: bool,
) -> Iterator[Tensor]:
    model, batch, f = generator.model, video.shape[0], adapter.temporal_factor
    decoder = adapter.decoder_stream(lookahead=False)
    decoder.push(video_tokens_of(tokens, video.shape[2]))
    frames = video[:, :, -f:]
    frames = torch.cat([frames[:, :, :1].expand(-1, -1, f - frames.shape[2], -1, -1), frames], dim=2)
    num_given = 0
    while num_frames is None or num_given < num_frames:
        actions = None
        if policy is not None:
            actions = check_step_actions(model, policy(frames), batch, "stream_rollout", validate=validate)
        frames = decoder.push(video_tokens_of(generator.step(actions)[:, None], f)).clamp(-1, 1)
        num_given += f
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
