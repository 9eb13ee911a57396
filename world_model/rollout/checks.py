"""Checks that the prompt, the length, the actions, the states and the adapter of a rollout fit its world model."""

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.state_dict import FLOATS
from vidtok_plugin.common.tensor_checks import check_tensor
from vidtok_plugin.store.encode import group_state
from vidtok_plugin.tokenizer.video_checks import as_float_video
from world_model.actions import GroupedActions, check_actions, group_actions
from world_model.model import WorldModel


def check_adapter(model: WorldModel, adapter: TokenizerAdapter, who: str) -> None:
    """Check that the adapter produces the tokens that the model was trained on."""
    if adapter.kind != model.tokens.kind:
        raise ValueError(
            f"{who}: the adapter must be {model.tokens.kind}, like the world model's tokens, got {adapter.kind}."
        )
    if model.token_hash is not None and model.token_hash != adapter.token_hash:
        raise ValueError(
            f"{who}: the adapter must have the token hash that the model was trained on, {model.token_hash}, got "
            f"{adapter.token_hash}; use the adapter saved with the model."
        )
    for name in ("codebook_size" if adapter.kind == "discrete" else "patch_dim", "temporal_factor"):
        ours, theirs = getattr(model.tokens, name), getattr(adapter, name)
        if ours != theirs:
            raise ValueError(f"{who}: the adapter's {name} must be the model's, {ours}, got {theirs}.")


def check_prompt(model: WorldModel, adapter: TokenizerAdapter, prompt: Tensor, who: str, *, validate: bool) -> Tensor:
    """Check the prompt's size and length and return it as float video on the model's device."""
    video = as_float_video(
        prompt, who=who, spatial_factor=adapter.spatial_factor, dtype=torch.float32, validate=validate
    )
    tokens, s = model.tokens, adapter.spatial_factor
    _, rows, columns = adapter.config.patch_size
    size = (tokens.height * s * rows, tokens.width * s * columns)
    if video.shape[3:] != size:
        raise ValueError(
            f"{who}: the prompt must be {size[0]} x {size[1]} pixels (height x width), like the model's training "
            f"videos, got {video.shape[3]} x {video.shape[4]}; resize it."
        )
    f, t = tokens.temporal_factor, video.shape[2]
    if (t - 1) % f:
        below = 1 + (t - 1) // f * f
        raise ValueError(
            f"{who}: the prompt must have 1 + k * {f} frames ({f} is the tokenizer's temporal factor), got {t}; the "
            f"nearest lengths that fit are {below} and {below + f}."
        )
    return video.to(model.device)


def check_num_frames(num_frames: int, temporal_factor: int, who: str) -> None:
    """Check that the number of frames to imagine is a positive multiple of the temporal factor."""
    if num_frames > 0 and num_frames % temporal_factor == 0:
        return
    below = max(0, num_frames) // temporal_factor * temporal_factor
    above = below + temporal_factor
    nearest = f"nearest lengths that fit are {below} and {above}" if below else f"nearest length that fits is {above}"
    raise ValueError(
        f"{who}: num_frames must be a positive multiple of {temporal_factor} (the tokenizer's temporal factor), got "
        f"{num_frames}; the {nearest}."
    )


def check_rollout_actions(
    model: WorldModel, actions: Tensor | None, batch: int, frames: int, what: str, who: str, *, validate: bool
) -> GroupedActions | None:
    """Check actions (b, t[, a]), one per frame, and group them by latent step, on the model's device.

    `what` says in the error messages which frames these are.
    """
    spec = model.tokens.actions
    if actions is None:
        if spec.kind != "none":
            raise ValueError(
                f"{who}: the world model was trained with actions; pass one for each of the {frames} frames ({what}), "
                "got none."
            )
        return None
    checked = check_actions(actions, spec, who, values=_on_cpu(actions) or validate, first=1)
    if checked.shape[:2] != (batch, frames):
        raise ValueError(
            f"{who}: actions must have the shape ({batch}, "
            f"{frames}{', ' + str(spec.size) if checked.ndim == 3 else ''}), one for each frame ({what}), "
            f"got {tuple(checked.shape)}."
        )
    return group_actions(checked.to(model.device), model.tokens.temporal_factor)


def check_prompt_state(
    model: WorldModel, state: Tensor | None, batch: int, frames: int, who: str, *, validate: bool
) -> Tensor | None:
    """Check the states (b, t, s) of a prompt's frames; -> grouped by latent step, (b, T, f, s) on the model's device.

    None if there are none: they are unknown then.
    """
    if state is None:
        return None
    if model.config.state is None:
        raise ValueError(f"{who}: the world model was trained without states; leave them out.")
    check_tensor(state, who=who, name="state")
    expected = (batch, frames, model.config.state.size)
    if state.shape != expected or state.dtype not in FLOATS:
        raise ValueError(
            f"{who}: state must be floats of shape {expected}, one state for each frame of the prompt, got "
            f"{state.dtype} of {tuple(state.shape)}."
        )
    state = state.float()
    if (_on_cpu(state) or validate) and bool(state.isinf().any()):
        place = tuple(state.isinf().nonzero()[0].tolist())
        raise ValueError(
            f"{who}: state must be finite in float32, or NaN where unknown, got {state[place].item()} at position "
            f"{place} (rollout, frame, component)."
        )
    return group_state(state.to(model.device), model.tokens.temporal_factor)


def _on_cpu(x: Tensor) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cpu"


def check_step_actions(model: WorldModel, actions: Tensor, batch: int, who: str, *, validate: bool) -> GroupedActions:
    """Check the actions (b, f[, a]) of one latent step and group them, on the model's device."""
    f, spec = model.tokens.temporal_factor, model.tokens.actions
    checked = check_actions(actions, spec, who, values=_on_cpu(actions) or validate)
    if checked.shape[:2] != (batch, f):
        raise ValueError(
            f"{who}: actions must be the {f} actions of the next latent step for each rollout, shape "
            f"({batch}, {f}{', ' + str(spec.size) if checked.ndim == 3 else ''}), got {tuple(checked.shape)}."
        )
    values = checked.to(model.device)[:, None]
    return GroupedActions(values=values, known=torch.ones(values.shape[:3], dtype=torch.bool, device=values.device))
