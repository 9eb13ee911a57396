"""Rollouts: encode a prompt, sample the tokens of its future, decode them to video.

Shapes: b rollouts, t h w frames and pixels, f frames per latent step, a components of a continuous action, s components
of a frame's state.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import VideoTokens
from vidtok_plugin.common.tensor_checks import check_tensor
from world_model.actions import GroupedActions
from world_model.decoding import Decoding
from world_model.generation.generator import StepGenerator
from world_model.heads.outcomes import Outcomes
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.checks import (
    check_adapter,
    check_num_frames,
    check_prompt,
    check_prompt_state,
    check_rollout_actions,
)
from world_model.rollout.tokens import decode_steps, encode_prompt, video_tokens_of


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """An imagined video, with the number of model calls and the seconds that it took."""

    video: Tensor  # (b, 3, t, h, w) in [-1, 1]: the prompt, then the imagined frames
    tokens: VideoTokens  # of the whole video
    prompt_reconstruction: Tensor  # (b, 3, prompt frames, h, w): the prompt, encoded and decoded by the tokenizer
    generated_tokens: int  # in all rollouts together
    model_calls: int  # transformer calls for the whole batch
    generation_seconds: float  # spent sampling tokens
    seconds: float  # of the whole rollout, with encoding and decoding
    # Predicted for each frame, 0 and False for the prompt's; None for a model without that head.
    rewards: Tensor | None = None  # (b, t) float32
    terminated: Tensor | None = None  # (b, t) bool: the episode ends with this frame, the last of its latent step
    # (b, t, s) float32, in its own units: the prompt's as given, NaN where unknown, then predicted ones; None likewise
    state: Tensor | None = None

    @property
    def imagined(self) -> Tensor:
        """The imagined frames without the prompt."""
        return self.video[:, :, self.prompt_reconstruction.shape[2] :]

    @property
    def tokens_per_second(self) -> float:
        """Tokens drawn in a second, in all rollouts together."""
        return self.generated_tokens / self.generation_seconds


def rollout(
    model: WorldModel,
    adapter: TokenizerAdapter,
    *,
    prompt: Tensor,
    actions: Tensor | None = None,
    num_frames: int = 32,
    sampler: Sampler | None = None,
    decoding: Decoding | None = None,
    indices: Sequence[int] | None = None,
    state: Tensor | None = None,
    validate: bool = False,
) -> RolloutResult:
    """Imagine the `num_frames` frames after `prompt`.

    `prompt` is video (b, 3, 1 + k f, h, w), uint8 or float in [-1, 1]. `actions` are integers (b, t) or floats
    (b, t, a), one for each frame of the prompt and of the future: `actions[:, i]` led from frame i-1 to frame i, and
    `actions[:, 0]` is ignored. `decoding` sets the order in which tokens are drawn, and the precision. `state`
    (b, p, s) holds the states of the prompt's frames for a model that has states, in their own units; without it they
    are unknown. Predicted states are part of the past of later steps, like drawn tokens.

    Each row draws its own random numbers, which depend only on the sampler's seed and the row's index. The index is the
    row's place in the batch unless `indices` gives others, so a batch can be split and a single rollout repeated.
    Decoding the tokens step by step gives exactly the frames that decoding them at once would give. Values are checked
    on the CPU, and on other devices only with `validate`.

    Raises:
        ValueError: the adapter, the prompt, the length, the actions, the states, the sampler or the decoding don't fit
            the model.

    Example:
        result = rollout(
            model, adapter, prompt=video, actions=actions, num_frames=32, sampler=Sampler(temperature=0.9)
        )
        result.video  # (b, 3, t, h, w)
    """
    begun = time.perf_counter()
    check_adapter(model, adapter, "rollout")
    video, grouped = _checked(model, adapter, prompt, actions, num_frames, "rollout", validate)
    past_state = check_prompt_state(model, state, len(video), video.shape[2], "rollout", validate=validate)
    tokens = encode_prompt(model, adapter, video)
    generated = _generate(model, [tokens], [grouped], [past_state], num_frames, sampler, decoding, indices)
    return _result(adapter, video, tokens, state, generated, begun, decoding)


def rollout_many(
    model: WorldModel,
    adapter: TokenizerAdapter,
    *,
    prompts: Sequence[Tensor],
    actions: Sequence[Tensor] | None = None,
    num_frames: int = 32,
    sampler: Sampler | None = None,
    decoding: Decoding | None = None,
    indices: Sequence[int] | None = None,
    states: Sequence[Tensor] | None = None,
    validate: bool = False,
) -> list[RolloutResult]:
    """Imagine the `num_frames` frames after each of several prompts of different lengths, in one batch.

    `prompts` are videos (3, 1 + k f, h, w); `actions` are (t,) or (t, a) each, over the prompt and its future; `states`
    are (p, s) each, over the prompt. Each
    result equals a `rollout` of that prompt alone with the same index. `seconds`, `generation_seconds` and
    `model_calls` are those of the batch.
    """
    begun = time.perf_counter()
    check_adapter(model, adapter, "rollout_many")
    if not prompts or (actions is not None and len(actions) != len(prompts)):
        raise ValueError(
            "rollout_many: there must be at least one prompt, and as many actions as prompts, got "
            f"{len(prompts)} prompts and {'no' if actions is None else len(actions)} actions."
        )
    if states is not None and len(states) != len(prompts):
        raise ValueError(f"rollout_many: states must be given for each of {len(prompts)} prompts, got {len(states)}.")
    for name, items in (("prompts", prompts), ("actions", actions or ()), ("states", states or ())):
        for i, item in enumerate(items):
            check_tensor(item, who="rollout_many", name=f"{name}[{i}]")
    checked = [
        _checked(
            model,
            adapter,
            prompt[None],
            None if actions is None else actions[i][None],
            num_frames,
            f"rollout_many (prompt {i})",
            validate,
        )
        for i, prompt in enumerate(prompts)
    ]
    given = [None if states is None else states[i][None] for i in range(len(prompts))]
    past_states = [
        check_prompt_state(model, state, 1, video.shape[2], f"rollout_many (prompt {i})", validate=validate)
        for i, (state, (video, _)) in enumerate(zip(given, checked, strict=True))
    ]
    tokens = [encode_prompt(model, adapter, video) for video, _ in checked]
    grouped = [acts for _, acts in checked]
    generated = _generate(model, tokens, grouped, past_states, num_frames, sampler, decoding, indices)
    return [
        _result(adapter, video, past, given[i], generated.row(i), begun, decoding)
        for i, ((video, _), past) in enumerate(zip(checked, tokens, strict=True))
    ]


@dataclass(frozen=True, kw_only=True)
class _Generated:
    """The steps that were drawn after pasts, for a whole batch."""

    tokens: Tensor  # (b, T, H, W[, p])
    rewards: Tensor | None  # (b, T * f)
    terminated: Tensor | None  # (b, T * f)
    state: Tensor | None  # (b, T * f, s)
    calls: int
    seconds: float
    batch_tokens: int  # drawn in all rows together

    def row(self, i: int) -> "_Generated":
        """One row, as a batch of one; calls, seconds and `batch_tokens` stay those of the batch."""
        rewards, terminated, state = (
            None if x is None else x[i : i + 1] for x in (self.rewards, self.terminated, self.state)
        )
        return replace(self, tokens=self.tokens[i : i + 1], rewards=rewards, terminated=terminated, state=state)


def _checked(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompt: Tensor,
    actions: Tensor | None,
    num_frames: int,
    who: str,
    validate: bool,
) -> tuple[Tensor, GroupedActions | None]:
    """The checked prompt and its grouped actions, on the model's device."""
    video = check_prompt(model, adapter, prompt, who, validate=validate)
    batch, _, prompt_frames = video.shape[:3]
    check_num_frames(num_frames, model.tokens.temporal_factor, who)
    what = f"{prompt_frames} of the prompt and {num_frames} to imagine"
    return video, check_rollout_actions(model, actions, batch, prompt_frames + num_frames, what, who, validate=validate)


def _generate(
    model: WorldModel,
    pasts: Sequence[Tensor],
    actions: Sequence[GroupedActions | None],
    states: Sequence[Tensor | None],
    num_frames: int,
    sampler: Sampler | None,
    decoding: Decoding | None,
    indices: Sequence[int] | None,
) -> _Generated:
    """The steps that follow pasts of different lengths, their outcomes and their states."""
    start = time.perf_counter()
    steps = num_frames // model.tokens.temporal_factor
    longest = max(past.shape[1] for past in pasts)
    tokens = torch.cat([_padded_in_front(past, longest) for past in pasts])
    grouped = None
    given = [acts for acts in actions if acts is not None]
    if given:
        padded = [acts.padded_in_front(longest + steps) for acts in given]
        grouped = GroupedActions(
            values=torch.cat([acts.values for acts in padded]), known=torch.cat([acts.known for acts in padded])
        )
    known = [state for state in states if state is not None]
    generator = StepGenerator(
        model,
        tokens,
        None if grouped is None else grouped[:longest],
        sampler or Sampler(),
        indices,
        decoding=decoding,
        past_steps=[past.shape[1] for past in pasts for _ in range(len(past))],
        state=torch.cat([_padded_in_front(state, longest) for state in known]) if known else None,
    )
    drawn, outcomes, predicted = [], [], []
    for step in range(longest, longest + steps):
        drawn.append(generator.step(None if grouped is None else grouped[step : step + 1]))
        outcomes.append(generator.outcomes)
        predicted.append(generator.state)
    _wait_for(model.device)
    new = torch.stack(drawn, dim=1)
    return _Generated(
        tokens=new,
        rewards=_by_frame([None if outcome is None else outcome.rewards for outcome in outcomes]),
        terminated=_by_frame(
            [None if outcome is None else _at_last_frame(outcome, model.tokens.temporal_factor) for outcome in outcomes]
        ),
        state=_by_frame(predicted),
        calls=generator.model_calls,
        seconds=time.perf_counter() - start,
        batch_tokens=prod(new.shape[:4]),
    )


def _by_frame(steps: Sequence[Tensor | None]) -> Tensor | None:
    """What frames (b, f, ...) of consecutive steps have, as (b, T * f, ...); None if there is nothing."""
    known = [step for step in steps if step is not None]
    return torch.cat(known, dim=1) if known else None


def _at_last_frame(outcomes: Outcomes, f: int) -> Tensor | None:
    """Whether each frame of a step ends the episode, (b, f) bool: none but the last."""
    if outcomes.terminated is None:
        return None
    return torch.cat(
        [outcomes.terminated.new_zeros(len(outcomes.terminated), f - 1), outcomes.terminated[:, None]], dim=1
    )


def _result(
    adapter: TokenizerAdapter,
    video: Tensor,
    prompt: Tensor,
    state: Tensor | None,
    generated: _Generated,
    begun: float,
    decoding: Decoding | None,
) -> RolloutResult:
    tokens = torch.cat([prompt, generated.tokens], dim=1)
    prompt_frames = video.shape[2]
    num_frames = prompt_frames + generated.tokens.shape[1] * adapter.temporal_factor
    decoded = decode_steps(adapter, tokens, (decoding or Decoding()).frame_precision)
    _wait_for(video.device)
    rewards, terminated = (
        None if x is None else torch.cat([x.new_zeros(len(x), prompt_frames), x], dim=1)
        for x in (generated.rewards, generated.terminated)
    )
    return RolloutResult(
        video=torch.cat([video, decoded[:, :, prompt_frames:]], dim=2),
        tokens=video_tokens_of(tokens, num_frames),
        prompt_reconstruction=decoded[:, :, :prompt_frames],
        generated_tokens=generated.batch_tokens,
        model_calls=generated.calls,
        generation_seconds=generated.seconds,
        seconds=time.perf_counter() - begun,
        rewards=rewards,
        terminated=terminated,
        state=None if generated.state is None else _with_prompt(state, generated.state, prompt_frames),
    )


def _with_prompt(given: Tensor | None, predicted: Tensor, prompt_frames: int) -> Tensor:
    """States (b, t, s) of a prompt as they were given, or unknown, and those predicted."""
    if given is None:
        before = predicted.new_full((len(predicted), prompt_frames, predicted.shape[2]), torch.nan)
    else:
        before = given.to(predicted)
    return torch.cat([before, predicted], dim=1)


def _padded_in_front(tokens: Tensor, steps: int) -> Tensor:
    """Tokens (b, T, ...) padded to `steps` steps with zeros in front."""
    missing = steps - tokens.shape[1]
    return torch.cat([tokens.new_zeros(tokens.shape[0], missing, *tokens.shape[2:]), tokens], dim=1)


def _wait_for(device: torch.device) -> None:
    """CUDA runs asynchronously: wait for it before reading the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
