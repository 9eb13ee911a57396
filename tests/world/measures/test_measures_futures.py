"""Imagined futures scored against real ones: perfect, copied and wrong ones have the expected scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_models import random_model
from metric_networks import ToyI3D, golden_lpips, save_torchscript
from recordings import tiny_adapter, write_episode
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.metrics.fvd import I3D
from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.reading import read_frames
from world_model import RolloutResult, Sampler
from world_model.measures import Prompts, futures, held_out_prompts, score_rollouts
from world_model.measures.controllability import action_effect, others_actions, random_actions
from world_model.measures.futures import PromptThenFree, prompt_then_free
from world_model.measures.prompts import recordings, room_for

PROMPT, FUTURE = 5, 12
MODEL, ADAPTER = random_model(), tiny_adapter()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for number, frames in enumerate((40, 20)):
        write_episode(root / f"{number}.mp4", frames)
    return root


@pytest.fixture
def prompts() -> Prompts:
    """Smooth moving videos, each with its own constant action."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, PROMPT + FUTURE, 4, 4, generator=generator) * 2 - 1
    video = torch.nn.functional.interpolate(coarse, (PROMPT + FUTURE, 16, 16), mode="trilinear")
    actions = torch.arange(3)[:, None].expand(3, PROMPT + FUTURE).contiguous()
    return Prompts(video=video, actions=actions, prompt_frames=PROMPT)


def measured(monkeypatch: pytest.MonkeyPatch, prompts: Prompts, imagine: Any, **settings: Any) -> PromptThenFree:
    """The scores of a model whose rollouts are `imagine(rows, actions)`, (b, 3, t, h, w)."""

    def fake(
        model: Any, adapter: TokenizerAdapter, *, prompt: Tensor, actions: Tensor, num_frames: int, sampler: Any,
        decoding: Any, indices: range, state: Tensor | None,
    ) -> RolloutResult:  # fmt: skip
        future = imagine(slice(indices.start, indices.stop), actions)
        return RolloutResult(
            video=torch.cat([prompt, future], dim=2),
            tokens=adapter.encode(prompt),
            prompt_reconstruction=prompt,
            generated_tokens=1,
            model_calls=1,
            generation_seconds=1.0,
            seconds=1.0,
        )

    monkeypatch.setattr(futures, "rollout", fake)
    return prompt_then_free(MODEL, ADAPTER, prompts, sampler=Sampler(), **settings)


def test_a_perfect_model_reaches_the_bound_at_every_frame(monkeypatch: pytest.MonkeyPatch, prompts: Prompts) -> None:
    result = measured(monkeypatch, prompts, lambda rows, actions: prompts.future[rows], batch_size=2)
    values = result.measured().values
    assert values["psnr_by_frame"] == pytest.approx([80] * FUTURE, abs=0.01)
    assert values["ssim_by_frame"] == pytest.approx([1] * FUTURE)
    assert values["action_delta_psnr"] == 0  # it ignores actions
    assert values["tokenizer_psnr"] < 30 and values["prompts"] == 3


def test_a_model_that_repeats_the_last_frame_scores_like_copying(
    monkeypatch: pytest.MonkeyPatch, prompts: Prompts
) -> None:
    last = prompts.prompt[:, :, -1:].expand_as(prompts.future)
    values = measured(monkeypatch, prompts, lambda rows, actions: last[rows]).measured().values
    assert values["psnr_by_frame"] == values["copy_psnr_by_frame"]
    assert values["ssim_by_frame"] == values["copy_ssim_by_frame"]
    assert values["psnr_by_frame"][0] > values["psnr_by_frame"][-1]


def test_the_horizon_shows_where_a_rollout_goes_wrong(monkeypatch: pytest.MonkeyPatch, prompts: Prompts) -> None:
    wrong = prompts.future.clone()
    wrong[:, :, 6:] = -wrong[:, :, 6:]
    values = measured(monkeypatch, prompts, lambda rows, actions: wrong[rows]).measured().values
    assert min(values["psnr_by_frame"][:6]) > 79 and max(values["psnr_by_frame"][6:]) < 20
    assert values["psnr"] == pytest.approx(np.mean(values["psnr_by_frame"]), abs=1e-4)


def test_a_model_that_follows_its_actions_has_a_positive_delta(
    monkeypatch: pytest.MonkeyPatch, prompts: Prompts
) -> None:
    def controlled(rows: slice, actions: Tensor) -> Tensor:
        return prompts.future[actions[:, -1]]  # the future that these actions belong to

    values = measured(monkeypatch, prompts, controlled).measured().values
    low, high = values["action_delta_psnr_interval"]
    assert 40 < low < values["action_delta_psnr"] < high


def test_lpips_and_fvd_are_measured_if_networks_are_given(
    monkeypatch: pytest.MonkeyPatch, prompts: Prompts, tmp_path: Path
) -> None:
    i3d = I3D(save_torchscript(ToyI3D(), tmp_path / "i3d.pt"))
    perfect = measured(
        monkeypatch, prompts, lambda rows, actions: prompts.future[rows], lpips=golden_lpips(), i3d=i3d, batch_size=2
    ).measured()
    assert perfect.values["lpips_by_frame"] == pytest.approx([0] * FUTURE, abs=1e-5)
    assert perfect.values["fvd"] == pytest.approx(0, abs=1e-3)
    assert perfect.values["copy_lpips_by_frame"][0] < perfect.values["copy_lpips_by_frame"][-1]
    wrong = measured(
        monkeypatch, prompts, lambda rows, actions: torch.ones_like(prompts.future[rows]), i3d=i3d
    ).measured()
    assert wrong.values["fvd"] > 0.1 and "lpips" not in wrong.values


def test_measures_that_need_more_prompts_or_actions_give_the_reason(
    monkeypatch: pytest.MonkeyPatch, prompts: Prompts, tmp_path: Path
) -> None:
    one = Prompts(video=prompts.video[:1], actions=prompts.actions[:1], prompt_frames=PROMPT)
    i3d = I3D(save_torchscript(ToyI3D(), tmp_path / "i3d.pt"))
    result = measured(monkeypatch, one, lambda rows, actions: prompts.future[rows], i3d=i3d).measured()
    assert "raise measures.prompts" in result.not_measured["action_delta_psnr"]
    assert "it needs at least 2 prompts" in result.not_measured["fvd"]
    none = Prompts(video=prompts.video, actions=None, prompt_frames=PROMPT)
    result = measured(monkeypatch, none, lambda rows, actions: prompts.future[rows]).measured()
    assert "trained without actions" in result.not_measured["action_delta_psnr"]


def test_scores_do_not_depend_on_the_batch_size(prompts: Prompts) -> None:
    one, three = (
        prompt_then_free(MODEL, ADAPTER, prompts, sampler=Sampler(seed=1), batch_size=size).measured().values
        for size in (1, 3)
    )
    assert one["psnr_by_frame"] == pytest.approx(three["psnr_by_frame"], abs=1e-3)
    assert one["action_delta_psnr"] == pytest.approx(three["action_delta_psnr"], abs=1e-3)


def test_score_rollouts_gives_the_same_numbers(prompts: Prompts) -> None:
    values = prompt_then_free(MODEL, ADAPTER, prompts, sampler=Sampler(seed=1)).measured().values
    scores, result = score_rollouts(MODEL, ADAPTER, prompts, sampler=Sampler(seed=1))
    assert scores.rollout_psnr == pytest.approx(values["psnr"], abs=1e-3)
    assert scores.copy_last_frame_psnr == pytest.approx(values["copy_psnr"], abs=1e-3)
    assert scores.action_delta_psnr == pytest.approx(values["action_delta_psnr"], abs=1e-3)
    assert scores.action_delta_psnr_low <= scores.action_delta_psnr
    assert result.video.shape == prompts.video.shape


def test_others_actions_swap_the_futures_and_keep_the_prompts() -> None:
    actions = torch.arange(5)[:, None, None].expand(5, 7, 2).float()
    swapped = others_actions(actions, prompt_frames=3)
    assert torch.equal(swapped[:, :3], actions[:, :3])
    assert (swapped[:, 3:] != actions[:, 3:]).all() and torch.equal(swapped[:, 3:].sort(0)[0], actions[:, 3:])
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        others_actions(actions[:1], prompt_frames=3)


def test_random_actions_are_held_and_keep_the_prompts() -> None:
    actions = torch.full((2, 60), 7)
    drawn = random_actions(actions, prompt_frames=10, size=5, hold=(3, 6))
    assert torch.equal(drawn[:, :10], actions[:, :10]) and set(drawn[:, 10:].flatten().tolist()) == set(range(5))
    changes = (drawn[:, 10:].diff(dim=1) != 0).sum(1)
    assert (changes >= 50 // 6 - 1).all() and (changes <= 50 // 3).all()


def test_a_chance_effect_has_an_interval_around_zero() -> None:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    chance = action_effect(20 + noise, torch.full((200,), 20.0))
    assert chance.low < 0 < chance.high
    sure = action_effect(21 + noise / 10, torch.full((200,), 20.0))
    assert 0.9 < sure.low < sure.delta_psnr < sure.high < 1.1


def test_prompts_are_segments_of_episodes_with_their_actions(folder: Path) -> None:
    episodes = find_episodes(folder)
    assert room_for(episodes, 17) == 3
    prompts = held_out_prompts(episodes, count=3, prompt_frames=5, future_frames=12)
    assert prompts.prompt.shape[2] == 5 and prompts.future.shape[2] == 12
    frames = torch.from_numpy(read_frames(episodes[0].path, range(17, 34))).float() / 127.5 - 1
    assert torch.equal(prompts.video[1], frames.permute(3, 0, 1, 2))
    assert prompts.actions is not None and prompts.actions[1].tolist() == episodes[0].actions[17:34].tolist()
    with pytest.raises(ValueError, match="count must be at most 3, the number of segments of 17 frames .*, got 4"):
        held_out_prompts(episodes, count=4, prompt_frames=5, future_frames=12)


def test_videos_without_actions_give_prompts_without_actions(folder: Path) -> None:
    videos = recordings(folder, with_actions=False)
    prompts = held_out_prompts(videos, count=2, prompt_frames=5, future_frames=12)
    assert prompts.actions is None and len(prompts) == 2
    assert [len(batch) for _, batch in prompts.batches(1)] == [1, 1]
