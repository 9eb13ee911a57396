"""The JSON beside an episode's video: read and checked, so that what it says can be relied on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.common.json_files import read_json_object
from vidtok_plugin.video.action_space import kind_and_size

MAX_FPS = 1_000_000
MAX_ACTIONS = 1_000_000  # of a discrete action space
_REMEDY = "record the episode again, or correct the file"


def read_meta(video: Path) -> dict[str, Any]:
    """The JSON beside a video, `clip.json` of `clip.mp4`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    try:
        return read_json_object(video.with_suffix(".json"), _REMEDY)
    except ValueError as error:
        raise ValueError(f"Episode {video}: {error}") from None


def check_meta(video: Path, meta: Mapping[str, Any], actions: np.ndarray) -> None:
    """Check `fps`, `task`, `num_frames`, `terminated`, `truncated` and `action_space`, each of which may be absent.

    actions: (t,) integers or (t, a) floats.

    Raises:
        ValueError: a value is impossible, or does not fit the actions.
    """
    check_fps(video, meta)
    if "task" in meta and not isinstance(meta["task"], str):
        raise _invalid(video, "task must be a string", meta["task"])
    if "num_frames" in meta and not _is_integer(meta["num_frames"], 2**63):
        raise _invalid(video, "num_frames must be an integer of at least 1", meta["num_frames"])
    for name in ("terminated", "truncated"):
        if name in meta and type(meta[name]) is not bool:
            raise _invalid(video, f"{name} must be true or false", meta[name])
    space = meta.get("action_space", {})
    if not isinstance(space, Mapping):
        raise _invalid(video, 'action_space must be an object, such as {"kind": "discrete", "size": 4}', space)
    if (described := space.get("space")) is not None:
        _check_described(video, space, described)
        return
    kind, largest = ("discrete", MAX_ACTIONS) if actions.ndim == 1 else ("continuous", actions.shape[1])
    if space.get("kind", kind) != kind:
        raise _invalid(video, f"action_space.kind must be {kind}, like its actions", space["kind"])
    size = space.get("size")
    if kind == "discrete" and size is not None and not _is_integer(size, largest):
        raise _invalid(video, f"action_space.size must be an integer in 1..{largest}", size)
    if kind == "continuous" and size is not None and (type(size) is not int or size != largest):
        raise _invalid(video, f"action_space.size must be {largest}, the components of its actions", size)


def _check_described(video: Path, space: Mapping[str, Any], described: Any) -> None:
    """Check that `kind` and `size`, which may be absent, are those of the description."""
    try:
        kind, size = kind_and_size(described)
    except ValueError as error:
        raise ValueError(f"Episode {video}: in {video.with_suffix('.json').name}, {error}") from None
    for name, value in (("kind", kind), ("size", size)):
        if space.get(name, value) != value:
            raise _invalid(video, f"action_space.{name} must be {value}, like its space, or left out", space[name])


def check_fps(video: Path, meta: Mapping[str, Any]) -> None:
    """Check `fps`, which may be absent; a ValueError if it is impossible."""
    if "fps" in meta and (type(meta["fps"]) not in (int, float) or not 0 < meta["fps"] <= MAX_FPS):
        raise _invalid(video, f"fps must be a number above 0, at most {MAX_FPS}", meta["fps"])


def frame_rate(video: Path, meta: Mapping[str, Any]) -> float:
    """The frames per second in a checked JSON.

    Raises:
        ValueError: it has none.
    """
    if "fps" not in meta:
        raise _invalid(video, "fps, the frames per second, must be there", sorted(meta))
    return float(meta["fps"])


def _is_integer(value: object, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _invalid(video: Path, rule: str, value: object) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return ValueError(f"Episode {video}: in {video.with_suffix('.json').name}, {rule}, got {shown}; {_REMEDY}.")
