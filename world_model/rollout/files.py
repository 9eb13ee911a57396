"""Rollouts from files: a saved model, a prompt video and its actions in, an imagined video out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.video.episodes import actions_path, load_array
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.signals import as_torch_reads_them
from vidtok_plugin.video.writing import VideoWriter
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.rollout import RolloutResult, rollout
from world_model.rollout.worlds import load_world


def rollout_file(
    world: str | Path,
    prompt: Path,
    output: Path,
    *,
    actions: Path | None = None,
    prompt_frames: int,
    num_frames: int,
    sampler: Sampler,
    decoding: Decoding | None = None,
) -> RolloutResult:
    """Imagine `num_frames` frames after the first `prompt_frames` frames of `prompt` and write all of them to `output`.

    `world` is a source for `load_world`. A model trained with actions reads them from `actions`, by default the file
    next to the prompt.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the video or the actions are too short or don't fit the model.
    """
    model, adapter = load_world(world)
    pixels, fps = read_prompt(prompt, prompt_frames)
    taken = read_actions(model, prompt, actions, prompt_frames + num_frames)
    with VideoWriter(output, fps=fps) as writer:  # before the work, for which the output may turn out to be impossible
        result = rollout(
            model,
            adapter,
            prompt=as_video(pixels, model.device),
            actions=taken,
            num_frames=num_frames,
            sampler=sampler,
            decoding=decoding,
        )
        writer.write(to_uint8(result.video[0]))
    return result


def read_prompt(path: Path, frames: int) -> tuple[np.ndarray, float]:
    """The first frames of a video, uint8 (t, h, w, 3), and its frame rate; a ValueError if it has fewer frames."""
    info = probe(path)
    if info.num_frames < frames:
        raise ValueError(
            f"rollout: {path} must have at least {frames} frames, got {info.num_frames}; lower --prompt-frames."
        )
    return read_frames(path, range(frames)), info.fps


def as_video(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 frames (t, h, w, 3) as a batch of one video, (1, 3, t, h, w) in [-1, 1]."""
    return from_uint8(torch.from_numpy(frames)[None].to(device))


def read_actions(model: WorldModel, prompt: Path, actions: Path | None, needed: int) -> Tensor | None:
    """The first `needed` actions (1, t[, a]) of a file, on the model's device; None for a model without actions.

    The file is `actions`, by default the one next to the prompt.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has too few actions, or it was given for a model that takes none.
    """
    if model.tokens.actions.kind == "none":
        if actions is not None:
            raise ValueError("rollout: the world model was trained without actions; leave --actions out.")
        return None
    path = actions_path(prompt) if actions is None else actions
    if not path.is_file():
        raise FileNotFoundError(f"rollout: there are no actions at {path}; pass a file with --actions.")
    loaded = load_array(path, f"rollout: {path}")
    if loaded.dtype.kind not in "iuf" or loaded.ndim not in (1, 2) or loaded.dtype == np.uint64:
        raise ValueError(
            f"rollout: {path} must hold integers (t,) or floats (t, a), got {loaded.dtype} of {loaded.shape}; save one "
            "action for each frame, at most int64."
        )
    taken = torch.from_numpy(as_torch_reads_them(loaded))[None]
    if taken.shape[1] < needed:
        raise ValueError(
            f"rollout: {path} must have an action for each of {needed} frames, got {taken.shape[1]}; lower --frames."
        )
    return taken[:, :needed].to(model.device)
