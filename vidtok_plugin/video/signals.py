"""Checks of what an episode has for each frame: actions, rewards, state."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vidtok_plugin.video.action_space import components, kind_and_size, wrong_value


def check_action_kind(where: str, name: str, actions: np.ndarray) -> None:
    """Check that actions are integers `(t,)` or floats `(t, a)`; a ValueError if not.

    where, name: of the episode and of its actions, for messages.
    """
    discrete = actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer)
    continuous = actions.ndim == 2 and np.issubdtype(actions.dtype, np.floating)
    if not (discrete or continuous):
        raise ValueError(
            f"{where}: {name} must be integers of shape (t,) or floats of shape (t, a),"
            f" got {actions.dtype} of {actions.shape}; write it with numpy.save."
        )


def check_action_values(where: str, name: str, actions: np.ndarray, size: int | None, fix: str) -> None:
    """Check that integers are in 0..size-1 and floats finite, except actions[0], which may be anything.

    Raises:
        ValueError: they are not; `fix` ends the message.
    """
    if actions.ndim == 2:
        check_finite(where, name, "actions", actions, fix, first=1)
        return
    used = actions[1:]
    largest = size or 2**63
    if len(used) and not 0 <= used.min() <= used.max() < largest:
        frame = int(np.argmax((used < 0) | (used >= largest))) + 1
        raise ValueError(
            f"{where}: {name} must have actions in 0..{largest - 1}, according to its action_space,"
            f" got {actions[frame]} at frame {frame}; {fix}."
        )


def described_actions(where: str, name: str, actions: np.ndarray, space: Mapping[str, Any], fix: str) -> np.ndarray:
    """Actions of a described space, checked and in the type in which they are kept: int64 `(t,)` of a single choice,
    float32 `(t, a)` of all others. actions[0] may be anything.

    Raises:
        ValueError: the description is invalid, or the actions have another shape or type, or a number that their
            component can't have; `fix` ends the message.
    """
    try:
        kind, size = kind_and_size(space)
    except ValueError as error:
        raise ValueError(f"{where}: {error}".removesuffix(".") + f"; {fix}.") from None
    shape, kinds = ("(t,)", "iu") if kind == "discrete" else (f"(t, {size})", "iufb")
    fits = actions.ndim == 1 if kind == "discrete" else actions.ndim == 2 and actions.shape[1] == size
    if not fits or actions.dtype.kind not in kinds:
        raise ValueError(
            f"{where}: {name} must be {'integers' if kind == 'discrete' else 'numbers'} of shape {shape}, according to "
            f"its action_space, got {actions.dtype} of {actions.shape}; {fix}."
        )
    vectors = actions[:, None] if kind == "discrete" else actions
    if (wrong := wrong_value(vectors[1:], components(space))) is not None:
        (frame, column), component = wrong
        raise ValueError(
            f"{where}: {name} must have actions whose {component.name} is {component.rule}, according to its "
            f"action_space, got {vectors[frame + 1, column]} at frame {frame + 1}; {fix}."
        )
    return as_torch_reads_them(actions if kind == "discrete" else actions.astype(np.float32))


def check_action_count(where: str, name: str, actions: np.ndarray, frames: int, fix: str) -> None:
    """Check that there is one action for each frame; a ValueError if not."""
    if len(actions) != frames:
        raise ValueError(
            f"{where}: {name} must have one action for each frame, got {len(actions)} for {frames} frames; {fix}."
        )


def check_rewards(where: str, name: str, rewards: np.ndarray, frames: int, fix: str) -> None:
    """Check that rewards are finite numbers `(t,)`, one for each frame; a ValueError if not."""
    if rewards.shape != (frames,) or rewards.dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: {name} must be numbers of shape ({frames},), one for each frame, got {rewards.dtype} of "
            f"{rewards.shape}; {fix}."
        )
    check_finite(where, name, "rewards", rewards, fix)


def check_state(where: str, name: str, state: np.ndarray, frames: int, fix: str) -> None:
    """Check that a state is finite numbers `(t, s)`, one row for each frame; a ValueError if not."""
    if state.ndim != 2 or len(state) != frames or state.dtype.kind not in "iufb":
        raise ValueError(
            f"{where}: {name} must be numbers of shape ({frames}, s), one row for each frame, got {state.dtype} of "
            f"{state.shape}; {fix}."
        )
    check_finite(where, name, "values", state, fix)


def check_finite(where: str, name: str, what: str, values: np.ndarray, fix: str, first: int = 0) -> None:
    """Check that `values[first:]`, `(t,)` or `(t, n)`, are finite in float32; a ValueError names the first other."""
    with np.errstate(over="ignore"):
        numbers = np.isfinite(values[first:].astype(np.float32))
    finite: np.ndarray = np.all(numbers, axis=tuple(range(1, numbers.ndim)))
    if not finite.all():
        frame = int(np.argmin(finite)) + first
        raise ValueError(
            f"{where}: {name} must have {what} that are finite in float32, got {values[frame]} at frame {frame}; {fix}."
        )


def as_torch_reads_them(actions: np.ndarray) -> np.ndarray:
    """Integers as int64 and floats as float32, in this machine's byte order."""
    kind = np.int64 if np.issubdtype(actions.dtype, np.integer) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # actions[0] may be anything
        return np.ascontiguousarray(actions, dtype=kind)
