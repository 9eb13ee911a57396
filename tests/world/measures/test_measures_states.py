"""The errors of predicted states are those of the known frames, beside those of copying the last state."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import tiny_adapter
from tensordict import TensorDict
from world_models import CONFIG, random_actions, random_model, random_tokens

from vidtok_plugin import open_episodes
from vidtok_plugin.store.encode import group_state
from world_model import Sampler, WorldModel, rollout
from world_model.actions import ActionSpec
from world_model.architecture import StateConfig, TokenSpec
from world_model.measures.drift import play_from_episodes
from world_model.measures.futures import prompt_then_free
from world_model.measures.prompts import held_out_prompts, recordings
from world_model.measures.state import StateScores
from world_model.measures.teacher_forcing import teacher_forced

NAN = float("nan")
STD = torch.tensor([0.5, 100.0])


def test_errors_are_in_deviations_and_in_own_units() -> None:
    """Frames are off by 1 deviation; the last states are off by 1 and by 2 steps of 0.5 and 50."""
    state = group_state(torch.tensor([[[0.0, 0], [0.5, 50], [1.0, 100], [1.5, 150], [2.0, 200]]]), 2)
    scores = StateScores(STD)
    scores.add(state[:, 1:] + STD, state, torch.tensor([[True, True]]))
    values = scores.measured().values
    assert values["state_rmse"] == 1
    assert values["state_rmse_by_component"] == pytest.approx([0.5, 100])
    assert values["copy_state_rmse_by_component"] == pytest.approx([0.5 * 2.5**0.5, 50 * 2.5**0.5])
    assert values["copy_state_rmse"] == pytest.approx((2.5 * (1 + 0.25) / 2) ** 0.5, abs=1e-5)


def test_unknown_frames_and_steps_that_are_not_valid_do_not_count() -> None:
    state = group_state(torch.zeros(1, 4, 2), 2)  # the last step has one frame
    predicted = state[:, 1:].nan_to_num(100.0)
    predicted[0, 0] = STD
    scores = StateScores(STD)
    scores.add(predicted, state, torch.tensor([[True, True]]))
    assert scores.measured().values["state_rmse"] == pytest.approx((2 / 3) ** 0.5, abs=1e-5)
    scores = StateScores(STD)
    scores.add(predicted, state, torch.tensor([[True, False]]))
    assert scores.measured().values["state_rmse"] == 1
    unknown = StateScores(STD)
    unknown.add(predicted, torch.full_like(state, NAN), torch.tensor([[True, True]]))
    assert "no states" in unknown.measured().not_measured["state_rmse"]


def test_teacher_forced_reports_a_new_models_states_as_copies() -> None:
    config = replace(CONFIG, state=StateConfig(size=2, width=8))
    actions, tokens = random_actions(config, 2, 3), random_tokens(config, 2, 3)
    assert actions is not None
    state = group_state(torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)) * STD, 2)
    batch = {"codes": tokens, "valid": torch.ones(2, 3, dtype=torch.bool), "state": state}
    batch |= {"actions": actions.values, "actions_known": actions.known}
    model = WorldModel(config).eval()
    values = teacher_forced(model, [TensorDict(batch, [2])], None).measured().values
    assert values["state_rmse"] == pytest.approx(values["copy_state_rmse"]) and values["state_rmse"] > 1
    trained = random_model(config)
    other = teacher_forced(trained, [TensorDict(batch, [2])], None).measured().values
    assert other["copy_state_rmse"] == values["copy_state_rmse"] != other["state_rmse"]
    assert trained.state_normalization is not None
    predicted = trained.window_states(tokens, actions, state)
    error = (predicted - state[:, 1:]).square().mean().sqrt().item()
    assert other["state_rmse"] == pytest.approx(error, rel=1e-3)


def test_futures_are_compared_with_the_real_states(tmp_path: Path) -> None:
    adapter, rng = tiny_adapter(), np.random.default_rng(0)
    for name in ("a", "b"):
        frames, state = rng.integers(0, 256, (13, 16, 16, 3), dtype=np.uint8), rng.normal(size=(13, 2)) * STD.numpy()
        np.savez(tmp_path / f"{name}.npz", frames=frames, fps=10, state=state)
    tokens = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=ActionSpec())
    model = random_model(replace(CONFIG, tokens=tokens, state=StateConfig(size=2, width=8)))
    assert model.state_normalization is not None
    model.state_normalization.set_statistics(torch.zeros(2), STD)
    assert recordings(tmp_path, with_actions=False)[0].state is None
    prompts = held_out_prompts(
        recordings(tmp_path, with_actions=False, with_state=True), count=2, prompt_frames=5, future_frames=8
    )
    state = torch.from_numpy(np.stack([episode.state for episode in open_episodes(tmp_path)]))  # type: ignore[misc]
    assert prompts.state is not None and torch.equal(prompts.state, state)
    values = prompt_then_free(model, adapter, prompts, sampler=Sampler(), batch_size=1).measured().values
    predicted = rollout(model, adapter, prompt=prompts.prompt, num_frames=8, state=state[:, :5]).state
    assert predicted is not None
    errors = ((predicted[:, 5:] - state[:, 5:]) / STD).square()
    copied = ((state[:, 4:5] - state[:, 5:]) / STD).square()
    assert values["state_rmse"] == pytest.approx(errors.mean().sqrt().item(), rel=1e-3)
    assert values["copy_state_rmse_by_frame"] == pytest.approx(copied.mean((0, 2)).sqrt().tolist(), rel=1e-3)
    starts, _ = play_from_episodes(adapter, prompts, 4, torch.device("cpu"))
    assert starts.state is not None and torch.equal(starts.state, state[:, :5])
