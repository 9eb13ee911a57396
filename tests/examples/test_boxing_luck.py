"""Played again with the same random numbers, Boxing is the recording; with others, its future differs."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.reading import read_frames
from world_model.recording.record import RecordConfig, record


def test_only_the_future_changes_with_the_opponents_luck(examples_path: None, tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    luck, play = importlib.import_module("boxing_luck"), importlib.import_module("boxing_play")
    sizes = {"train_episodes": 0, "validation_episodes": 0, "test_episodes": 1, "frames_per_episode": 120, "size": 64}
    cfg = RecordConfig(env="ALE/Boxing-v5", output=str(tmp_path), frame_skip=2, hold=(3, 12), crf=0, **sizes)
    record(cfg, policy=play.BoxingPolicy)
    (episode,) = find_episodes(tmp_path / "test")
    start, frames = 20, 100
    recorded = torch.from_numpy(read_frames(episode.path, range(start, start + frames))).float()
    same, other = (
        torch.from_numpy(luck.play_again(episode, start, frames, generator)).float() for generator in (None, (1, 2))
    )
    assert (same - recorded).abs().mean() < 1  # levels of 255: the recording's colors are rounded
    assert torch.equal(other[: luck.PROMPT_FRAMES], same[: luck.PROMPT_FRAMES])
    assert np.abs((other - same).numpy())[-20:].mean() > 0.5
