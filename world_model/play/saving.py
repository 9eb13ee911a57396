"""Saving what was played as an episode: a video with its actions and JSON, which `vidtok-plugin tokenize` reads."""

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.video.episodes import actions_path, meta_path, save_episode_files
from vidtok_plugin.video.writing import VideoWriter
from world_model.play.session import PlaySession


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A copy of a session's live branch up to its cursor, which another thread can write while the game goes on."""

    frames: Sequence[np.ndarray]  # uint8 (t, h, w, 3) each, in order
    actions: np.ndarray | None  # (t,) int64 or (t, a) float32, over all of them; None for a world without actions
    fps: float
    meta: dict[str, Any]


def recording_of(session: PlaySession) -> Recording:
    """The prompt and what was played after it; the newest of both, if not all of it is kept."""
    scenes, path = session.scenes, session.timeline.path
    prompt = scenes.prompts[session.prompt]
    frames, actions = [moment.frames for moment in path], [moment.actions for moment in path]
    from_prompt = path[0].actions is None
    if from_prompt:
        frames[0] = prompt.frames
        known = None if prompt.actions is None else prompt.actions[0].cpu().numpy()
        rest = scenes.actions.rest
        actions[0] = np.asarray([rest] * len(prompt.frames)) if known is None and rest is not None else known
    count = sum(len(part) for part in frames)
    kind, size = scenes.actions.kind, scenes.actions.size
    meta = {
        "fps": prompt.fps,
        "num_frames": count,
        "imagined": {
            "world": scenes.name,
            "prompt": prompt.name,
            "prompt_frames": len(prompt.frames) if from_prompt else 0,
            "sampler": asdict(session.sampler),
        },
    }
    taken = None
    if kind != "none":
        taken = np.concatenate([part for part in actions if part is not None])
        taken = taken.astype(np.int64 if kind == "discrete" else np.float32)
        meta["action_space"] = {"kind": kind, "size": size, "meanings": list(scenes.actions.meanings)}
        if scenes.actions.space is not None:
            meta["action_space"] = {"space": scenes.actions.space, "meanings": list(scenes.actions.meanings)}
    return Recording(frames=frames, actions=taken, fps=prompt.fps, meta=meta)


def save_recording(recording: Recording, folder: Path) -> Path:
    """Write a recording as the next free `played_00000.mp4` of a folder, with its files; -> the video.

    It is an episode to learn from, with colors at full resolution.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while (video := folder / f"played_{number:05d}.mp4").exists():
        number += 1
    with VideoWriter(video, fps=recording.fps) as writer:
        for part in recording.frames:
            writer.write(part)
    if recording.actions is not None:
        save_episode_files(video, recording.actions, recording.meta)
    return video


def zipped(video: Path) -> bytes:
    """A video and the files of its episode as a zip archive."""
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # stored: video does not get smaller
        for path in (video, actions_path(video), meta_path(video)):
            if path.is_file():
                archive.write(path, path.name)
    return file.getvalue()
