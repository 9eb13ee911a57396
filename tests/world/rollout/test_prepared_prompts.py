"""A world whose data were brought to a size and rate brings recorded prompts there, wherever it takes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import tiny_adapter
from video_files import written_as
from world_models import CONFIG, random_model

from vidtok_plugin import TokenizerAdapter, open_episodes
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video import probe, write_video
from vidtok_plugin.video.episodes import save_episode_files
from vidtok_plugin.video.preparation import Preparation
from world_model import cli as world_cli
from world_model.data import TokenDataConfig, token_spec
from world_model.envs.starts import Starts
from world_model.measures.config import MeasuresConfig
from world_model.measures.validation import Validation
from world_model.model import WorldModel
from world_model.play.scenes import load_scenes
from world_model.rollout.files import as_models_data, read_actions, read_prompt

PREPARATION = Preparation(size=(16, 24), fit="pad", fps=15)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode of 30 frames a second, larger than the world's."""
    folder, rng = tmp_path_factory.mktemp("recorded"), np.random.default_rng(0)
    frames = rng.integers(0, 256, (41, 30, 30, 3), dtype=np.uint8)
    write_video(folder / "a.mp4", frames, fps=30)
    save_episode_files(
        folder / "a.mp4", rng.integers(0, 3, 41), {"fps": 30, "action_space": {"kind": "discrete", "size": 3}}
    )
    return folder


@pytest.fixture(scope="module")
def store(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for split in ("train", "validation"):
        write_store(tiny_adapter(), open_episodes(recorded), folder, split=split, size=(16, 24), fit="pad", fps=15)
    return folder


@pytest.fixture(scope="module")
def world(store: Path) -> tuple[WorldModel, TokenizerAdapter]:
    from vidtok_plugin.store.metadata import read_metadata

    adapter, tokens = tiny_adapter(), token_spec(read_metadata(store))
    assert tokens.preparation == replace(PREPARATION, group_actions="concatenate")
    assert (tokens.actions.kind, tokens.actions.choices) == ("mixed", (3, 3))
    return random_model(replace(CONFIG, tokens=tokens)), adapter


@pytest.fixture(scope="module")
def saved(world: tuple[WorldModel, TokenizerAdapter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world[0].save_pretrained(folder, world[1])
    return folder


@pytest.fixture(scope="module")
def expected(recorded: Path) -> Any:
    return PREPARATION.of(open_episodes(recorded)[0])


def test_a_saved_world_knows_how_its_data_were_brought_to_their_size_and_rate(saved: Path, world: Any) -> None:
    loaded = WorldModel.from_pretrained(saved)
    assert loaded.tokens.preparation == world[0].tokens.preparation
    assert replace(loaded.tokens, preparation=None) == loaded.tokens  # it may be trained further on other data


@pytest.mark.parametrize("prompt", ["a.mp4", "."])
def test_a_rollout_takes_a_prompt_of_any_size_and_rate(
    saved: Path, recorded: Path, tmp_path: Path, expected: Any, prompt: str
) -> None:
    output = tmp_path / "out.mp4"
    arguments = ["--prompt", str(recorded / prompt), "--output", str(output), "--prompt-frames", "5", "--frames", "4"]
    assert world_cli.main(["rollout", "--model", str(saved), *arguments]) == 0
    info = probe(output)
    assert (info.num_frames, info.height, info.width, info.fps) == (9, 16, 24, 15.0)
    assert written_as(output)[0] == "yuv420p"
    assert world_cli.main(["rollout", "--model", str(saved), *arguments, "--full-color"]) == 0
    assert written_as(output)[0] == "yuv444p"


def test_the_prompt_and_its_actions_are_those_of_the_kept_frames(recorded: Path, world: Any, expected: Any) -> None:
    for prompt in (recorded / "a.mp4", open_episodes(recorded)[0]):
        chosen = as_models_data(world[0], prompt)
        frames, fps = read_prompt(chosen, 9)
        assert np.array_equal(frames, expected.read(range(9))) and fps == 15
        actions = read_actions(world[0], chosen, None, 21)
        assert actions is not None and actions[0].tolist() == expected.actions[:21].tolist()
    without = replace(CONFIG, tokens=replace(world[0].tokens, preparation=None))
    assert as_models_data(random_model(without), recorded / "a.mp4") == recorded / "a.mp4"


def test_imagined_environments_start_from_prompts_of_any_size_and_rate(recorded: Path, world: Any) -> None:
    start = Starts(world[0], recorded, 5, "env").draw(np.random.default_rng(0))
    assert start.frames.shape == (5, 16, 24, 3) and start.actions is not None and start.actions.shape == (5, 2)


def test_a_page_starts_from_prompts_of_any_size_and_rate(recorded: Path, saved: Path, expected: Any) -> None:
    (prompt,) = load_scenes(saved, recorded, device="cpu").prompts
    count = len(prompt.frames)
    assert np.array_equal(prompt.frames, expected.read(range(count))) and prompt.fps == 15
    assert prompt.actions is not None and prompt.actions[0].tolist() == expected.actions[:count].tolist()


def test_measures_take_recordings_of_any_size_and_rate(recorded: Path, store: Path, world: Any, expected: Any) -> None:
    measures = MeasuresConfig(episodes=recorded, prompt_frames=5, future_frames=4, drift_frames=16, drift_segment=16)
    validation = Validation(*world, TokenDataConfig(store=str(store)), measures)
    assert validation.episodes is not None
    assert torch.equal(
        torch.from_numpy(validation.episodes[0].read(range(21))), torch.from_numpy(expected.read(range(21)))
    )
