"""Rolling out from files: a saved model, a prompt's video and actions in, the imagined video out."""

from pathlib import Path

import numpy as np
import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.devices import default_device
from vidtok_plugin.video.episodes import actions_path
from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.writing import write_video
from world_model.decoding import Decoding
from world_model.model import WorldModel
from world_model.pretrained import ADAPTER_FOLDER
from world_model.rollout import RolloutResult, rollout
from world_model.sampler import Sampler


def rollout_file(
    model_folder: Path,
    prompt: Path,
    output: Path,
    *,
    actions: Path | None = None,
    prompt_frames: int,
    num_frames: int,
    sampler: Sampler,
    decoding: Decoding | None = None,
) -> RolloutResult:
    """Imagines `num_frames` frames after the first `prompt_frames` of `prompt`, and writes both to `output`.

    Raises:
        FileNotFoundError: a file or folder is missing; a model with actions needs `actions`, by default the file
            beside the prompt.
        ValueError: the video or the actions are too short, or do not fit the model.
    """
    device = default_device()
    model = WorldModel.from_pretrained(model_folder).eval().to(device)
    adapter = TokenizerAdapter.from_pretrained(model_folder / ADAPTER_FOLDER).to(device)
    info = probe(prompt)
    if info.num_frames < prompt_frames:
        raise ValueError(
            f"rollout: {prompt} has {info.num_frames} frames, fewer than the prompt's {prompt_frames}; "
            "lower --prompt-frames."
        )
    video = torch.from_numpy(read_frames(prompt, range(prompt_frames))).permute(3, 0, 1, 2)[None].to(device)
    taken = None
    if model.tokens.actions.kind != "none":
        path = actions_path(prompt) if actions is None else actions
        if not path.is_file():
            raise FileNotFoundError(f"rollout: there are no actions at {path}; name a file with --actions.")
        taken = torch.from_numpy(np.load(path, allow_pickle=False))[None].to(device)
        needed = prompt_frames + num_frames
        if taken.shape[1] < needed:
            raise ValueError(
                f"rollout: {path} must have an action for each of {needed} frames, got {taken.shape[1]}; "
                "lower --frames."
            )
        taken = taken[:, :needed]
    result = rollout(
        model, adapter, prompt=video, actions=taken, num_frames=num_frames, sampler=sampler, decoding=decoding
    )
    pixels = ((result.video[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    write_video(output, pixels.permute(1, 2, 3, 0).cpu().numpy(), fps=info.fps)
    return result
