"""The Boxing world in the package: its files are those that were measured, and its boxers stay and obey."""

import hashlib
import importlib
import json
from pathlib import Path

import pytest
import torch

from vidtok_plugin.video.episodes import load_episode
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.reading import read_frames
from world_model import Decoding, Sampler, load_world, rollout
from world_model.rollout.tokens import reconstruct
from world_model.rollout.worlds import world_folder, world_prompts

MAX_BYTES = 25 * 2**20
PROMPT, FUTURE = 13, 16


def test_its_weights_are_those_that_were_measured() -> None:
    folder = world_folder("boxing")
    hashes = json.loads((folder / "training.json").read_text())["weights_sha256"]
    assert set(hashes) == {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    for name, expected in hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.slow
def test_its_boxers_stay_and_the_player_obeys(examples_path: None) -> None:
    """From the prompts that come with it: both boxers are there, and the player's way follows the actions."""
    measures = importlib.import_module("boxing_measures")
    model, adapter = load_world("boxing", device="cpu")
    sampler = Sampler(**json.loads((world_folder("boxing") / "measures.json").read_text())["sampler"])
    paths: list[Path] = world_prompts("boxing")
    frames = PROMPT + FUTURE
    video = torch.stack([from_uint8(torch.from_numpy(read_frames(path, range(frames)))) for path in paths])
    actions = torch.stack([torch.from_numpy(load_episode(path).actions[:frames]) for path in paths])
    settings = {"sampler": sampler, "decoding": Decoding(order="diagonal", diagonal_offset=2), "num_frames": FUTURE}

    def imagined(actions: torch.Tensor) -> torch.Tensor:
        return rollout(model, adapter, prompt=video[:, :, :PROMPT], actions=actions, **settings).imagined

    made, real = imagined(actions), video[:, :, PROMPT:]
    present = measures.both_present(made, reconstruct(adapter, video)[:, :, PROMPT:])
    assert present.float().mean() > 0.95
    other = actions.clone()
    other[:, PROMPT:] = actions.roll(1, dims=0)[:, PROMPT:]
    obeyed, disobeyed = (measures.player_distance(x, real)[:, -1].mean() for x in (made, imagined(other)))
    assert obeyed < 0.7 * disobeyed


@pytest.mark.slow
def test_most_guesses_of_its_tokens_are_right() -> None:
    """A step of 64 tokens takes fewer than 12 calls when they are guessed (8 on average), at temperature 0 and 1."""
    model, adapter = load_world("boxing", device="cpu")
    path = world_prompts("boxing")[0]
    video = from_uint8(torch.from_numpy(read_frames(path, range(PROMPT))))[None]
    actions = torch.from_numpy(load_episode(path).actions[: PROMPT + FUTURE])[None]
    for temperature in (0.0, 1.0):
        settings = {"sampler": Sampler(temperature=temperature), "decoding": Decoding(draft_tokens=16)}
        guessed = rollout(model, adapter, prompt=video, actions=actions, num_frames=FUTURE, **settings)
        assert guessed.model_calls < FUTURE // 4 * 12
