"""Rollouts of a model with states give the states of imagined frames, and read those of the prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_episode
from torch import Tensor
from world_models import CONFIG, random_model

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.encode import group_state
from vidtok_plugin.video.episodes import state_path
from vidtok_plugin.video.video_file import as_episode
from world_model import ImaginedEnv, ImaginedVectorEnv, Planner, Sampler, WorldModel, rollout, stream_rollout
from world_model.actions import ActionSpec, group_actions
from world_model.architecture import StateConfig, TokenSpec
from world_model.rollout.files import rollout_file
from world_model.rollout.imagination import Imagination
from world_model.rollout.rollout import rollout_many

ACTIONS = ActionSpec(kind="discrete", size=3)
TOKENS = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=ACTIONS)


@pytest.fixture(scope="module")
def adapter() -> TokenizerAdapter:
    return tiny_adapter()


@pytest.fixture(scope="module")
def model(adapter: TokenizerAdapter) -> WorldModel:
    """States have two components, with means of 1 and 100 and deviations of 0.1 and 50."""
    found = random_model(replace(CONFIG, tokens=TOKENS, state=StateConfig(size=2, width=16)))
    found.token_hash = adapter.token_hash
    assert found.state_normalization is not None
    found.state_normalization.set_statistics(torch.tensor([1.0, 100.0]), torch.tensor([0.1, 50.0]))
    return found


def settings(frames: int = 5, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(batch, frames, 2, generator=generator) * torch.tensor([0.1, 50.0]) + torch.tensor([1.0, 100.0])
    return {
        "prompt": torch.rand(batch, 3, frames, 16, 16, generator=generator),
        "actions": torch.randint(3, (batch, frames + 8), generator=generator),
        "state": state,
    }


def test_a_rollout_has_a_state_for_each_frame(model: WorldModel, adapter: TokenizerAdapter) -> None:
    """The prompt's, as given, and then those that the whole window predicts, from the prompt's and its own."""
    given = settings()
    result = rollout(model, adapter, **given, num_frames=8, sampler=Sampler(temperature=0))
    assert result.state is not None and result.state.shape == (2, 13, 2)
    assert torch.equal(result.state[:, :5], given["state"])
    tokens = result.tokens.grid_values
    grouped = group_state(result.state, 4)
    whole = model.window_states(tokens, group_actions(given["actions"], 4), grouped)
    torch.testing.assert_close(grouped[:, 2:], whole[:, 1:], rtol=1e-3, atol=1e-2)


def test_unknown_states_of_a_prompt_are_nan(model: WorldModel, adapter: TokenizerAdapter) -> None:
    given = settings() | {"state": None}
    state = rollout(model, adapter, **given, num_frames=8).state
    assert state is not None and state[:, :5].isnan().all() and state[:, 5:].isfinite().all()
    plain = random_model(replace(CONFIG, tokens=TOKENS))
    assert rollout(plain, adapter, **given, num_frames=8).state is None


def test_every_way_to_roll_out_gives_the_same_states(model: WorldModel, adapter: TokenizerAdapter) -> None:
    given, sampler = settings(), Sampler(seed=3)
    result = rollout(model, adapter, **given, num_frames=8, sampler=sampler)
    assert result.state is not None
    shorter = settings(frames=1, batch=1)
    many = rollout_many(
        model,
        adapter,
        prompts=[given["prompt"][0], shorter["prompt"][0]],
        actions=[given["actions"][0], shorter["actions"][0]],
        states=[given["state"][0], shorter["state"][0]],
        num_frames=8,
        sampler=sampler,
    )
    alone = rollout(model, adapter, **shorter, num_frames=8, sampler=sampler, indices=[1])
    for found, expected in ((many[0].state, result.state[:1]), (many[1].state, alone.state)):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    past = {"actions": given["actions"][:, :5], "state": given["state"], "sampler": sampler}
    imagination = Imagination(model, adapter, prompts=given["prompt"], **past)
    steps = [imagination.step(given["actions"][:, i : i + 4]).state for i in (5, 9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), result.state[:, 5:])  # type: ignore[arg-type]
    imagination.reset_rows([0], given["prompt"][:1], given["actions"][:1, :5], state=given["state"][:1], indices=[0])
    again = imagination.step(given["actions"][:, 5:9]).state
    assert again is not None
    torch.testing.assert_close(again[0], result.state[0, 5:9], rtol=1e-3, atol=1e-2)

    queue = [given["actions"][:, 5:9], given["actions"][:, 9:]]
    frames = list(
        stream_rollout(model, adapter, prompt=given["prompt"], policy=lambda _: queue.pop(0), num_frames=8, **past)
    )
    assert torch.cat(frames, dim=2).shape[2] == 8 and not queue


def test_the_command_reads_and_writes_states(model: WorldModel, adapter: TokenizerAdapter, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "world", adapter)
    video = tmp_path / "clip.mp4"
    write_episode(video, 13)
    state = settings(frames=13, batch=1)["state"][0].numpy()
    np.save(state_path(video), state)
    common: dict[str, Any] = {"prompt_frames": 5, "num_frames": 8, "sampler": Sampler(temperature=0)}
    rollout_file(tmp_path / "world", video, tmp_path / "out.mp4", **common)
    written = np.load(tmp_path / "out.state.npy")
    assert written.shape == (13, 2) and written.dtype == np.float32
    np.testing.assert_array_equal(written[:5], state[:5])
    assert np.isfinite(written[5:]).all() and not np.allclose(written[5:], state[5:])
    rollout_file(tmp_path / "world", tmp_path, tmp_path / "again.mp4", episode=0, **common)  # an episode of a source
    np.testing.assert_array_equal(np.load(tmp_path / "again.state.npy"), written)
    state_path(video).unlink()
    rollout_file(tmp_path / "world", video, tmp_path / "without.mp4", **common)
    assert np.isnan(np.load(tmp_path / "without.state.npy")[:5]).all()


def test_environments_begin_with_states_and_report_them(
    model: WorldModel, adapter: TokenizerAdapter, tmp_path: Path
) -> None:
    write_episode(tmp_path / "clip.mp4", 5)
    state = settings(batch=1)["state"][0].numpy()
    np.save(state_path(tmp_path / "clip.mp4"), state)
    env = ImaginedEnv((model, adapter), prompts=tmp_path, prompt_frames=5, sampler=Sampler(temperature=0))
    _, info = env.reset(seed=0)
    assert "state" not in info
    info = env.step(1)[-1]
    episode = as_episode(tmp_path / "clip.mp4")
    prompt = torch.from_numpy(episode.read(range(5))).permute(3, 0, 1, 2)[None]
    actions = torch.from_numpy(np.load(tmp_path / "clip.actions.npy"))[None]
    expected = rollout(
        model,
        adapter,
        prompt=prompt,
        actions=torch.cat([actions, torch.ones(1, 4, dtype=torch.int64)], dim=1),
        num_frames=4,
        sampler=Sampler(temperature=0),
        state=torch.from_numpy(state)[None],
    ).state
    assert expected is not None
    np.testing.assert_allclose(info["state"], expected[0, 5:], rtol=1e-3, atol=1e-2)
    envs = ImaginedVectorEnv((model, adapter), 2, prompts=tmp_path, prompt_frames=5, sampler=Sampler(temperature=0))
    envs.reset(seed=0)
    infos = envs.step(np.ones(2, dtype=np.int64))[-1]
    np.testing.assert_allclose(infos["state"][1], expected[0, 5:], rtol=1e-3, atol=1e-2)


def test_plans_read_the_states_of_the_past(
    model: WorldModel, adapter: TokenizerAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner(model, adapter, method="shooting", horizon=4, candidates=3, precision="bfloat16")
    given, seen = settings(), []

    def spy(self: Imagination, *args: Any, state: Tensor | None = None, **others: Any) -> None:
        seen.append(state)
        original(self, *args, state=state, **others)

    original = Imagination.__init__
    monkeypatch.setattr(Imagination, "__init__", spy)
    past = given["actions"][:, :5]
    goal = torch.zeros(3, 16, 16)
    assert planner.plan(given["prompt"], past, goal, past_state=given["state"]).shape == (2, 4)
    assert torch.equal(seen[0], given["state"])
    with pytest.raises(ValueError, match="past_state must have one state for each of the 5 frames"):
        planner.plan(given["prompt"], past, goal, past_state=given["state"][:, :3])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(2, 4, 2), r"state must be floats of shape \(2, 5, 2\), one state for each frame of the prompt"),
        (torch.zeros(2, 5, 2, dtype=torch.int64), r"state must be floats .* got torch.int64"),
        (torch.full((2, 5, 2), float("inf")), r"state must be finite in float32, .* got inf at position \(0, 0, 0\)"),
    ],
)
def test_states_that_do_not_fit_are_named(
    model: WorldModel, adapter: TokenizerAdapter, state: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(model, adapter, **settings() | {"state": state}, num_frames=8)
    with pytest.raises(ValueError, match="was trained without states; leave them out"):
        rollout(random_model(replace(CONFIG, tokens=TOKENS)), adapter, **settings() | {"state": state}, num_frames=8)
