"""Rollouts from files: a saved model, a prompt and its actions in, an imagined video out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.video.array_files import ARRAY_SUFFIXES
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.episodes import FIX_STATE, actions_path, load_array, load_episode, state_path
from vidtok_plugin.video.opening import open_episodes
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.signals import as_torch_reads_them, check_state
from vidtok_plugin.video.video_file import VideoFile, as_episode
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
    episode: int | None = None,
    camera: str | None = None,
    actions: Path | None = None,
    prompt_frames: int,
    num_frames: int,
    sampler: Sampler,
    decoding: Decoding | None = None,
    full_color: bool = False,
) -> RolloutResult:
    """Imagine `num_frames` frames after the first `prompt_frames` frames of `prompt` and write all of them to `output`.

    The file is for people to watch (yuv420p): an odd height or width is made even by a copy of the last row or column.
    With `full_color` it is one to measure or learn from, with the frames' own size and colors at full resolution
    (yuv444p), which many players refuse.

    The states of a model that has them go into the file beside it, `out.state.npy` of `out.mp4`, float32 (t, s).

    `world` is a source for `load_world`. The prompt is a video file, or another source for `open_episodes`, of which
    `episode` is the number of the episode and `camera` the camera. A model trained with actions reads them from
    `actions`, by default those of the prompt: the file next to a video. So does one with states, which may be missing.
    A prompt is brought to the size and rate of the model's data, if the model knows how its data were; the file
    `actions` has one action for each frame at that rate.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: there is no such episode or camera, or it or the actions are too short or don't fit the model.
    """
    chosen = choose_prompt(prompt, episode, camera)
    model, adapter = load_world(world)
    chosen = as_models_data(model, chosen, with_actions=actions is None)
    pixels, fps = read_prompt(chosen, prompt_frames)
    taken = read_actions(model, chosen, actions, prompt_frames + num_frames)
    state = read_state(model, chosen, prompt_frames)
    # Before the work, for which the output may turn out to be impossible.
    with VideoWriter(output, fps=fps, playable=not full_color) as writer:
        result = rollout(
            model,
            adapter,
            prompt=as_video(pixels, model.device),
            actions=taken,
            num_frames=num_frames,
            sampler=sampler,
            decoding=decoding,
            state=state,
        )
        writer.write(to_uint8(result.video[0]))
    if result.state is not None:
        with atomic_write(state_path(output)) as partial, partial.open("wb") as file:
            np.save(file, result.state[0].cpu().numpy())
    return result


def choose_prompt(prompt: Path, episode: int | None = None, camera: str | None = None) -> Episode | Path:
    """One episode of a source for `open_episodes`; the path of a video file as it is.

    Raises:
        FileNotFoundError: the source has no episodes.
        ValueError: there is no episode of that number, or there are several and none is chosen.
    """
    if not prompt.is_dir() and prompt.suffix.lower() not in ARRAY_SUFFIXES and episode is None and camera is None:
        return prompt
    episodes = open_episodes(prompt, camera)
    if episode is None and len(episodes) > 1:
        raise ValueError(
            f"rollout: {prompt} has {len(episodes)} episodes; choose one with --episode 0 to {len(episodes) - 1}."
        )
    if not 0 <= (episode or 0) < len(episodes):
        raise ValueError(
            f"rollout: --episode must be in 0..{len(episodes) - 1}, the episodes of {prompt}, got {episode}."
        )
    return episodes[episode or 0]


def as_models_data(model: WorldModel, prompt: Episode | Path, *, with_actions: bool = True) -> Episode | Path:
    """A prompt at the size and rate of the model's data; as it is if they were taken as they had been recorded.

    with_actions: whether those of the prompt are wanted, if the model takes any.
    """
    if model.tokens.preparation is None:
        return prompt
    if isinstance(prompt, Path):
        wanted = model.config.state is not None or (with_actions and model.tokens.actions.kind != "none")
        prompt = load_episode(prompt) if wanted and actions_path(prompt).is_file() else VideoFile.at(prompt)
    return model.tokens.prepare(prompt)


def read_prompt(prompt: Episode | Path, frames: int) -> tuple[np.ndarray, float]:
    """The first frames of a video, uint8 (t, h, w, 3), and its frame rate; a ValueError if it has fewer frames."""
    episode = as_episode(prompt)
    if episode.num_frames < frames:
        raise ValueError(
            f"rollout: {episode} must have at least {frames} frames, got {episode.num_frames}; lower --prompt-frames."
        )
    return episode.read(range(frames)), episode.fps or episode.frame_rate()


def as_video(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 frames (t, h, w, 3) as a batch of one video, (1, 3, t, h, w) in [-1, 1]."""
    return from_uint8(torch.from_numpy(frames)[None].to(device))


def read_actions(model: WorldModel, prompt: Episode | Path, actions: Path | None, needed: int) -> Tensor | None:
    """The first `needed` actions (1, t[, a]), on the model's device; None for a model without actions.

    They are those in the file `actions`, or by default the prompt's: of a path, those in the file next to it.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: there are too few actions, or a file was given for a model that takes none.
    """
    if model.tokens.actions.kind == "none":
        if actions is not None:
            raise ValueError("rollout: the world model was trained without actions; leave --actions out.")
        return None
    where: Episode | Path = prompt if actions is None else actions
    if actions is None and isinstance(prompt, Path):
        where = actions_path(prompt)
    loaded = _read_actions_file(where) if isinstance(where, Path) else where.actions
    if loaded is None:
        raise ValueError(f"rollout: {where} has no actions; pass a file with --actions.")
    if model.tokens.actions.kind == "mixed" and loaded.ndim == 2:  # choices alone may be integers, or true and false
        loaded = loaded.astype(np.float32)
    taken = torch.from_numpy(as_torch_reads_them(loaded))[None]
    if taken.shape[1] < needed:
        raise ValueError(
            f"rollout: {where} must have an action for each of {needed} frames, got {taken.shape[1]}; lower --frames."
        )
    return taken[:, :needed].to(model.device)


def read_state(model: WorldModel, prompt: Episode | Path, frames: int) -> Tensor | None:
    """The states (1, frames, s) of the prompt's first frames, on the model's device: of a path, those in the file next
    to it. None for a model without states, or a prompt without.

    Raises:
        ValueError: the file cannot be read, or has fewer frames.
    """
    if model.config.state is None:
        return None
    state: np.ndarray | None = None
    if not isinstance(prompt, Path):
        state = prompt.state
    elif state_path(prompt).is_file():
        state = load_array(state_path(prompt), f"rollout: {prompt}")
        check_state(f"rollout: {prompt}", state_path(prompt).name, state, len(state), FIX_STATE)
    if state is None:
        return None
    if len(state) < frames:
        raise ValueError(
            f"rollout: {prompt} must have a state for each of {frames} frames, got {len(state)}; lower --prompt-frames."
        )
    return torch.from_numpy(state[:frames].astype(np.float32))[None].to(model.device)


def _read_actions_file(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"rollout: there are no actions at {path}; pass a file with --actions.")
    loaded = load_array(path, f"rollout: {path}")
    if loaded.dtype.kind not in "iufb" or loaded.ndim not in (1, 2) or loaded.dtype == np.uint64:
        raise ValueError(
            f"rollout: {path} must hold integers (t,) or floats (t, a), got {loaded.dtype} of {loaded.shape}; save one "
            "action for each frame, at most int64."
        )
    return loaded
