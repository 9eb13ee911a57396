"""What rollouts take: prompts, lengths and actions that fit model and adapter, and what the errors say."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidtok_plugin.tokenizer.video_checks import as_float_video
from world_model.actions import GroupedActions, check_actions, group_actions
from world_model.model import WorldModel

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter


def check_adapter(model: WorldModel, adapter: "TokenizerAdapter", who: str) -> None:
    """The adapter must speak the very tokens that the model learned."""
    if adapter.kind != model.tokens.kind:
        raise ValueError(
            f"{who}: the adapter must be {model.tokens.kind}, as the world model's tokens are, got {adapter.kind}."
        )
    if model.token_hash is not None and model.token_hash != adapter.token_hash:
        raise ValueError(
            f"{who}: the adapter must be the one whose tokens the model learned, {model.token_hash}, got "
            f"{adapter.token_hash}."
        )
    for name in ("codebook_size" if adapter.kind == "discrete" else "patch_dim", "temporal_factor"):
        ours, theirs = getattr(model.tokens, name), getattr(adapter, name)
        if ours != theirs:
            raise ValueError(f"{who}: the adapter's {name} must be the model's, {ours}, got {theirs}.")


def check_prompt(model: WorldModel, adapter: "TokenizerAdapter", prompt: Tensor, who: str, *, validate: bool) -> Tensor:
    """The prompt as float video on the model's device, of a size and length that fit."""
    video = as_float_video(
        prompt, who=who, spatial_factor=adapter.spatial_factor, dtype=torch.float32, validate=validate
    )
    tokens, s = model.tokens, adapter.spatial_factor
    _, rows, columns = adapter.config.patch_size
    size = (tokens.height * s * rows, tokens.width * s * columns)
    if video.shape[3:] != size:
        raise ValueError(
            f"{who}: the prompt must be {size[0]} x {size[1]} pixels (height x width), as "
            f"the model's training videos, got {video.shape[3]} x {video.shape[4]}; resize it."
        )
    f, t = tokens.temporal_factor, video.shape[2]
    if (t - 1) % f:
        below = 1 + (t - 1) // f * f
        raise ValueError(
            f"{who}: the prompt must have 1 + k * {f} frames ({f} is the tokenizer's temporal factor), got "
            f"{t}; the nearest that fit are {below} and {below + f}."
        )
    return video.to(model.device)


def check_num_frames(num_frames: int, temporal_factor: int, who: str) -> None:
    """A positive multiple of the temporal factor."""
    if num_frames > 0 and num_frames % temporal_factor == 0:
        return
    below = max(0, num_frames) // temporal_factor * temporal_factor
    above = below + temporal_factor
    nearest = f"nearest that fit are {below} and {above}" if below else f"nearest that fits is {above}"
    raise ValueError(
        f"{who}: num_frames must be a positive multiple of {temporal_factor} (the tokenizer's temporal "
        f"factor), got {num_frames}; the {nearest}."
    )


def check_rollout_actions(
    model: WorldModel, actions: Tensor | None, batch: int, frames: int, what: str, who: str, *, validate: bool
) -> GroupedActions | None:
    """Actions (b, t[, a]), one for each of the `frames` that `what` tells, grouped, on the model's device."""
    spec = model.tokens.actions
    if actions is None:
        if spec.kind != "none":
            raise ValueError(
                f"{who}: actions must be given, one for each of the {frames} frames ({what}), since the "
                "world model learned them, got none."
            )
        return None
    checked = check_actions(actions, spec, who, values=actions.device.type == "cpu" or validate)
    if checked.shape[:2] != (batch, frames):
        raise ValueError(
            f"{who}: actions must have the shape ({batch}, "
            f"{frames}{', ' + str(spec.size) if checked.ndim == 3 else ''}), one for each frame ({what}), "
            f"got {tuple(checked.shape)}."
        )
    return group_actions(checked.to(model.device), model.tokens.temporal_factor)


def check_step_actions(model: WorldModel, actions: Tensor, batch: int, who: str, *, validate: bool) -> GroupedActions:
    """What a policy returned, (b, f[, a]): the actions of one latent step."""
    f, spec = model.tokens.temporal_factor, model.tokens.actions
    checked = check_actions(actions, spec, who, values=actions.device.type == "cpu" or validate)
    if checked.shape[:2] != (batch, f):
        raise ValueError(
            f"{who}: the policy must return the {f} actions of the next latent step for each rollout, "
            f"({batch}, {f}{', ' + str(spec.size) if checked.ndim == 3 else ''}), got {tuple(checked.shape)}."
        )
    values = checked.to(model.device)[:, None]
    return GroupedActions(values=values, known=torch.ones(values.shape[:3], dtype=torch.bool, device=values.device))
