"""What the page and the server say to each other: the page's messages, checked, and a moment as one binary message.

A moment's message is a little-endian uint32, the length of a JSON header of as many bytes, and JPEG strips: the f
imagined frames from top to bottom and, where there is a real game, its f frames.
"""

import base64
import io
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from world_model.play.scenes import ActionSpace
from world_model.play.session import Action, PlaySession
from world_model.play.timeline import Moment

MAX_MESSAGE_BYTES = 4096  # of the page's messages
QUALITY = 92  # of JPEG, with full color resolution: at 64x64 pixels, half of it shows
MAX_TEMPERATURE, MAX_GUIDANCE = 2.0, 5.0

Name = Literal[
    "hold", "seen", "run", "pause", "step", "reset", "rewind", "branch", "sampler", "entropy", "save"
]  # of the page's messages


@dataclass(frozen=True, kw_only=True)
class Command:
    """A message of the page."""

    name: Name
    number: int = 0  # of the input (hold), moment (seen, rewind), prompt (reset; -1 for the same) or branch
    action: Action = None
    temperature: float = 1.0
    guidance: float = 1.0
    on: bool = False


def parse_command(text: str | bytes | None, space: ActionSpace) -> Command:
    """The command in a message; a ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("play: a message must be text.")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"play: a message must be JSON, got {text[:60]!r}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"play: a message must be an object, got {text[:60]!r}.")
    name = given.get("type")
    if name == "hold":
        return Command(name="hold", number=_integer(given, "id"), action=space.check(given.get("action")))
    if name in ("seen", "rewind"):
        return Command(name=name, number=_integer(given, "moment"))
    if name == "branch":
        return Command(name="branch", number=_integer(given, "branch"))
    if name == "reset":
        return Command(name="reset", number=_integer(given, "prompt") if "prompt" in given else -1)
    if name == "sampler":
        return Command(
            name="sampler",
            temperature=_number(given, "temperature", MAX_TEMPERATURE),
            guidance=_number(given, "guidance", MAX_GUIDANCE),
        )
    if name == "entropy":
        if type(given.get("on")) is not bool:
            raise ValueError(f"play: on must be true or false, got {str(given.get('on'))[:60]!r}.")
        return Command(name="entropy", on=given["on"])
    if name in ("run", "pause", "step", "save"):
        return Command(name=name)
    raise ValueError(f"play: there is no message of type {str(name)[:60]!r}.")


def _integer(given: Mapping[str, Any], field: str) -> int:
    value = given.get(field)
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"play: {field} must be a whole number from 0, got {str(value)[:60]!r}.")
    return value


def _number(given: Mapping[str, Any], field: str, largest: float) -> float:
    value = given.get(field)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= largest:  # NaN is in no range
        raise ValueError(f"play: {field} must be a number in 0..{largest:g}, got {str(value)[:60]!r}.")
    return float(value)


def greeting(session: PlaySession) -> dict[str, Any]:
    """What the page needs to know of the world."""
    scenes, actions = session.scenes, session.scenes.actions
    tokens = scenes.model.tokens
    height, width = scenes.prompts[0].frames.shape[1:3]
    return {
        "type": "hello",
        "world": scenes.name,
        "width": width,
        "height": height,
        "frames": scenes.step_frames,
        "fps": scenes.prompts[session.prompt].fps,
        "grid": [tokens.height, tokens.width],
        "maxEntropy": None if tokens.codebook_size is None else math.log(tokens.codebook_size),
        "actions": {
            "kind": actions.kind,
            "size": actions.size,
            "meanings": list(actions.meanings),
            "rest": actions.rest,
            "low": list(actions.low),
            "high": list(actions.high),
            "whole": list(actions.whole),
        },
        "guidable": scenes.guidable,
        "maxTemperature": MAX_TEMPERATURE,
        "maxGuidance": MAX_GUIDANCE,
        "prompts": [{"name": prompt.name, "picture": _picture(prompt.frames[-1:])} for prompt in scenes.prompts],
    }


def state_of(session: PlaySession, running: bool) -> dict[str, Any]:
    """Everything that changes other than by going on."""
    timeline = session.timeline
    return {
        "type": "state",
        "running": running,
        "prompt": session.prompt,
        "branch": timeline.live.id,
        "branches": [
            {"id": branch.id, "parent": branch.parent, "picture": _picture(branch.tip.frames[-1:])}
            for branch in sorted(timeline.branches, key=lambda branch: branch.id)
        ],
        "temperature": session.sampler.temperature,
        "guidance": session.sampler.guidance,
        "entropy": session.measures_entropy,
        "noReal": session.no_real,
        "realReplayed": session.real is not None and session.real.replayed,  # up to the prompt's last picture
    }


def pack_moment(session: PlaySession, moment: Moment, *, jump: bool, seconds: float) -> bytes:
    """A moment as a message. `jump`: it does not follow the one before. `seconds`: that it took to imagine."""
    strips = [_jpeg(moment.frames)]
    if moment.real is not None:
        strips.append(_jpeg(moment.real.frames))
    header = {
        "moment": moment.id,
        "branch": session.timeline.live.id,
        "jump": jump,
        "input": session.held.id,
        "action": None if moment.actions is None else moment.actions[-1].tolist(),
        "reward": moment.reward,
        "score": moment.score,
        "over": moment.terminated,
        "realScore": None if moment.real is None else moment.real.score,
        "realOver": moment.real is not None and moment.real.over,
        "entropy": None if moment.entropy is None else [round(float(value), 3) for value in moment.entropy.flatten()],
        "moments": session.timeline.resumable,
        "milliseconds": round(1000 * seconds, 1),
        "strips": [len(strip) for strip in strips],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, *strips])


def unpack_moment(message: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header, and the strips as uint8 frames (f h, w, 3): what the page does, for tests and other clients."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    start, strips = 4 + length, []
    for size in header["strips"]:
        strips.append(np.asarray(Image.open(io.BytesIO(message[start : start + size])).convert("RGB")))
        start += size
    return header, strips


def _jpeg(frames: np.ndarray) -> bytes:
    """Frames (f, h, w, 3) from top to bottom in one picture."""
    file = io.BytesIO()
    Image.fromarray(frames.reshape(-1, *frames.shape[2:])).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _picture(frames: np.ndarray) -> str:
    """As an address that a page can show."""
    return f"data:image/jpeg;base64,{base64.b64encode(_jpeg(frames)).decode()}"
