"""Imagined video: a prompt is encoded as a stream, its future drawn token by token, and decoded as a stream.

Shapes: b rollouts, t h w frames and pixels, f frames a latent step, a components of a continuous action.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from vidtok_plugin.adapter.tokens import TokenGrid
from world_model.actions import GroupedActions
from world_model.generator import StepGenerator
from world_model.model import WorldModel
from world_model.rollout_checks import (
    check_adapter,
    check_num_frames,
    check_prompt,
    check_rollout_actions,
    check_step_actions,
)
from world_model.sampler import Sampler

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter
    from vidtok_plugin.adapter.tokens import VideoTokens

ENCODED_AT_ONCE = 16  # frames of a prompt, so that a long one needs no more memory

Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """What a rollout imagined, and how fast."""

    video: Tensor  # (b, 3, t, h, w) in [-1, 1]: the prompt, then the frames imagined
    tokens: "VideoTokens"  # of the whole video
    prompt_reconstruction: Tensor  # (b, 3, prompt frames, h, w): the prompt as the tokenizer gives it back
    generated_tokens: int  # of all rollouts together
    generation_seconds: float  # that the world model took to draw them
    seconds: float  # that the rollout took in all, encoding and decoding included

    @property
    def imagined(self) -> Tensor:
        """The imagined frames alone."""
        return self.video[:, :, self.prompt_reconstruction.shape[2] :]

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.generation_seconds


def rollout(
    model: WorldModel,
    adapter: "TokenizerAdapter",
    *,
    prompt: Tensor,
    actions: Tensor | None = None,
    num_frames: int = 32,
    sampler: Sampler | None = None,
    indices: Sequence[int] | None = None,
    validate: bool = False,
) -> RolloutResult:
    """Imagine the `num_frames` frames after `prompt`.

    `prompt` is video (b, 3, 1 + k f, h, w), uint8 or float in [-1, 1]; `actions` (b, t) integers or (b, t, a)
    floats over the prompt and the imagined frames: `actions[:, i]` led from frame i-1 to frame i, and
    `actions[:, 0]` is ignored. A row's randomness follows from the sampler's seed and the row's index, its
    place in the batch unless `indices` tells others: so a batch may be split, or a rollout repeated alone.
    Values are checked on the CPU, and on other devices with `validate`. Frames are decoded exactly as from
    the whole clip's tokens.

    Raises:
        ValueError: the adapter, the prompt, the length or the actions don't fit the model; it names what
        does.

    Example:
        result = rollout(model, adapter, prompt=video, actions=actions, num_frames=32,
        sampler=Sampler(temperature=0.9)) result.video  # (b, 3, t, h, w)
    """
    begun = time.perf_counter()
    check_adapter(model, adapter, "rollout")
    video = check_prompt(model, adapter, prompt, "rollout", validate=validate)
    batch, _, prompt_frames = video.shape[:3]
    f = model.tokens.temporal_factor
    check_num_frames(num_frames, f, "rollout")
    what = f"{prompt_frames} of the prompt and {num_frames} to imagine"
    grouped = check_rollout_actions(
        model, actions, batch, prompt_frames + num_frames, what, "rollout", validate=validate
    )

    codes = _encode(adapter, video)
    prompt_steps = codes.shape[1]
    start = time.perf_counter()
    past = None if grouped is None else grouped[:prompt_steps]
    generator = StepGenerator(model, codes, past, sampler or Sampler(), indices)
    drawn = []
    for step in range(prompt_steps, prompt_steps + num_frames // f):
        drawn.append(generator.step(None if grouped is None else grouped[step : step + 1]))
    _wait_for(video.device)
    generation_seconds = time.perf_counter() - start

    codes = torch.cat([codes, torch.stack(drawn, dim=1)], dim=1)
    tokens = _video_tokens(adapter, codes, prompt_frames + num_frames)
    decoded = _decode(adapter, codes, f)
    _wait_for(video.device)
    return RolloutResult(
        video=torch.cat([video, decoded[:, :, prompt_frames:]], dim=2),
        tokens=tokens,
        prompt_reconstruction=decoded[:, :, :prompt_frames],
        generated_tokens=batch * len(drawn) * model.tokens.tokens_per_step,
        generation_seconds=generation_seconds,
        seconds=time.perf_counter() - begun,
    )


def stream_rollout(
    model: WorldModel,
    adapter: "TokenizerAdapter",
    *,
    prompt: Tensor,
    policy: Policy | None = None,
    actions: Tensor | None = None,
    num_frames: int | None = None,
    sampler: Sampler | None = None,
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
    return _stream(model, adapter, video, policy, past, num_frames, sampler or Sampler(), indices, validate)


def _stream(
    model: WorldModel,
    adapter: "TokenizerAdapter",
    video: Tensor,
    policy: Policy | None,
    past: GroupedActions | None,
    num_frames: int | None,
    sampler: Sampler,
    indices: Sequence[int] | None,
    validate: bool,
) -> Iterator[Tensor]:
    batch, f = video.shape[0], model.tokens.temporal_factor
    codes = _encode(adapter, video)
    generator = StepGenerator(model, codes, past, sampler, indices)
    decoder = adapter.decoder_stream(lookahead=False)
    decoder.push(_video_tokens(adapter, codes, video.shape[2]))
    frames = video[:, :, -f:]
    frames = torch.cat([frames[:, :, :1].expand(-1, -1, f - frames.shape[2], -1, -1), frames], dim=2)
    given = 0
    while num_frames is None or given < num_frames:
        actions = None
        if policy is not None:
            actions = check_step_actions(model, policy(frames), batch, "stream_rollout", validate=validate)
        frames = decoder.push(_video_tokens(adapter, generator.step(actions)[:, None], f)).clamp(-1, 1)
        given += f
        yield frames


@torch.no_grad()
def _encode(adapter: "TokenizerAdapter", video: Tensor) -> Tensor:
    """The codes (b, T, H, W) of a prompt."""
    stream, steps = adapter.stream(), []
    for frames in video.split(ENCODED_AT_ONCE, dim=2):
        tokens = stream.push(frames)
        steps.append(rearrange(tokens.ids, "b (T H W) -> b T H W", H=tokens.grid.H, W=tokens.grid.W))
    return torch.cat(steps, dim=1)


@torch.no_grad()
def _decode(adapter: "TokenizerAdapter", codes: Tensor, temporal_factor: int) -> Tensor:
    """All frames of whole steps, one step at a time, in [-1, 1]."""
    stream = adapter.decoder_stream(lookahead=True)
    frames = [stream.push(_video_tokens(adapter, codes[:, :1], 1))]
    for step in range(1, codes.shape[1]):
        frames.append(stream.push(_video_tokens(adapter, codes[:, step : step + 1], temporal_factor)))
    return torch.cat([*frames, stream.flush()], dim=2).clamp(-1, 1)


def _wait_for(device: torch.device) -> None:
    """CUDA runs on its own; times are only known once it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _video_tokens(adapter: "TokenizerAdapter", codes: Tensor, num_frames: int) -> "VideoTokens":
    steps, height, width = codes.shape[1:]
    return adapter.tokens_from_ids(codes.flatten(1), TokenGrid(steps, height, width), num_frames)


def _unknown_actions(model: WorldModel, batch: int, frames: int) -> GroupedActions:
    spec, f = model.tokens.actions, model.tokens.temporal_factor
    shape = (batch, 1 + (frames - 1) // f, f)
    values = (
        torch.zeros(shape, dtype=torch.int64, device=model.device)
        if spec.kind == "discrete"
        else torch.zeros(*shape, spec.size, device=model.device)
    )
    return GroupedActions(values=values, known=torch.zeros(shape, dtype=torch.bool, device=model.device))
