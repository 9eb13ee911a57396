"""Rollouts in bfloat16: the model and the decoder of frames compute in it, while prompts keep their tokens."""

from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, tiny_kl_adapter, write_folder
from torch import Tensor, nn
from world_models import CONFIG, FLOW, MASKED, random_model

from vidtok_plugin import open_episodes
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common import precision as precision_module
from vidtok_plugin.common.precision import in_precision
from world_model import Decoding, ImaginedVectorEnv, Planner, Sampler, load_world, rollout
from world_model.actions import group_actions
from world_model.architecture import OutcomeConfig
from world_model.cli import main
from world_model.model import WorldModel
from world_model.rollout.imagination import Imagination
from world_model.rollout.worlds import world_prompts

F = 4  # frames per latent step
HALF = Decoding(precision="bfloat16")
KINDS = {
    "causal": replace(CONFIG, action_dropout=0.2, outcomes=OutcomeConfig(width=16)),
    "factored": replace(CONFIG, vocabulary="factored"),
    "masked": MASKED["masked"],
    "patches": FLOW,
}


def world(name: str = "causal") -> tuple[WorldModel, TokenizerAdapter]:
    """A toy world of 16 x 16 pixels."""
    config = KINDS[name]
    assert config.tokens is not None
    discrete = config.tokens.kind == "discrete"
    changes: dict[str, Any] = {} if discrete else {"patch_dim": 4}
    tokens = replace(config.tokens, width=2, temporal_factor=F, **changes)
    return random_model(replace(config, tokens=tokens)), tiny_adapter() if discrete else tiny_kl_adapter()


def video(batch: int = 2, frames: int = 1 + F) -> Tensor:
    return torch.rand(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def actions(frames: int, batch: int = 2) -> Tensor:
    return torch.randint(5, (batch, frames), generator=torch.Generator().manual_seed(2))


def test_a_module_is_copied_only_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(2, 2)
    assert in_precision(module, "float32") is module
    half = in_precision(module, "bfloat16")
    assert half.weight.dtype == torch.bfloat16 and module.weight.dtype == torch.float32
    assert in_precision(half, "bfloat16") is half
    for fast in (True, False):
        monkeypatch.setattr(precision_module, "has_fast_bfloat16", lambda device, fast=fast: fast)
        assert (in_precision(module, "auto") is module) == (not fast)
    assert Decoding().precision == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_a_model_in_bfloat16_and_prompts_keep_theirs(name: str) -> None:
    """Beyond the model's context, too."""
    model, adapter = world(name)
    given: dict[str, Any] = {"prompt": video(), "actions": actions(1 + 6 * F), "num_frames": 5 * F}
    half = rollout(model, adapter, **given, decoding=HALF)
    by_hand = rollout(deepcopy(model).bfloat16(), adapter, **given)
    full = rollout(model, adapter, **given)
    assert model.dtype == adapter.tokenizer.dtype == torch.float32
    tokens = half.tokens.grid_values
    torch.testing.assert_close(tokens[:, 2:], by_hand.tokens.grid_values[:, 2:], check_dtype=False)
    if adapter.kind == "discrete":  # bfloat16 would encode them as others
        assert torch.equal(tokens[:, :2], full.tokens.grid_values[:, :2])
    assert half.video.dtype == torch.float32 and torch.equal(half.video[:, :, : 1 + F], full.video[:, :, : 1 + F])
    assert 0 < (half.imagined - by_hand.imagined).abs().mean() < 0.03  # of -1 to 1; by hand decodes in float32
    if half.rewards is not None:
        assert half.rewards.dtype == torch.float32 and half.rewards[:, 1 + F :].abs().sum() > 0

    past, *future = actions(1 + 6 * F).split((1 + F, *[F] * 5), dim=1)
    imagination = Imagination(model, adapter, prompts=video(), actions=past, decoding=HALF)
    steps = [imagination.step(acts) for acts in future]
    torch.testing.assert_close(torch.stack([step.tokens for step in steps], dim=1), tokens[:, 2:], check_dtype=False)
    frames = torch.cat([step.frames for step in steps], dim=2)
    assert frames.dtype == torch.float32 and frames.abs().max() <= 1
    assert (frames - half.imagined).abs().mean() < 0.03


@pytest.mark.slow
def test_forks_samplers_and_rows_that_start_again_stay_in_bfloat16() -> None:
    model, adapter = world()
    imagination = Imagination(model, adapter, prompts=video(), actions=actions(1 + F), decoding=HALF)
    imagination.step(actions(F))
    twin, guided = imagination.fork(2), imagination.with_sampler(Sampler(guidance=2.0))
    imagination.reset_rows([1], video(1), actions(1 + F, batch=1), indices=[7])
    for each in (imagination, twin, guided):
        step = each.step(actions(F, batch=each.batch))
        assert each.generator.model.dtype == each.generator.window.cache.own.keys.dtype == torch.bfloat16
        assert step.frames.dtype == torch.float32 and step.frames.isfinite().all()


@pytest.mark.slow
def test_the_same_seeds_give_the_same_episodes_in_a_batch_of_the_same_size(tmp_path: Path) -> None:
    """In another one they may differ: bfloat16 sums are rounded by its size (`Decoding`)."""
    model, adapter = world()
    prompts = write_folder(tmp_path, {"a": 11, "b": 19})
    settings: dict[str, Any] = {"prompts": prompts, "prompt_frames": 5, "horizon": 4 * F, "decoding": HALF}
    taken = np.random.default_rng(0).integers(0, 3, (7, 2))
    played = []
    for _ in range(2):
        envs = ImaginedVectorEnv((model, adapter), 2, **settings)
        envs.reset(seed=3)
        played.append(np.stack([envs.step(action)[0] for action in taken]))
    np.testing.assert_array_equal(played[0], played[1])
    assert played[0].dtype == np.uint8


@pytest.mark.slow
def test_a_planner_takes_a_decoding_in_bfloat16() -> None:
    model, adapter = world()
    planner = Planner(model, adapter, horizon=4, candidates=9, precision="float32", decoding=HALF)
    assert planner.model is model and planner.plan(video(1), None).shape == (1, 4)


def test_the_command_has_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[Decoding] = []

    def file(*_: object, decoding: Decoding, **__: object) -> Any:
        chosen.append(decoding)
        raise ValueError("seen")

    monkeypatch.setattr(import_module("world_model.rollout.files"), "rollout_file", file)
    for option in ([], ["--precision", "bfloat16"]):
        assert main(["rollout", "--model", "boxing", "--output", str(tmp_path / "out.mp4"), *option]) == 2
    assert [decoding.precision for decoding in chosen] == ["float32", "bfloat16"]


@pytest.mark.slow
@torch.no_grad()
def test_boxing_loses_next_to_nothing_in_bfloat16() -> None:
    """Of the shipped prompts: less than 0.005 nats a token, and frames within 50 dB of those of float32."""
    model, adapter = load_world("boxing", device="cpu")
    half, decoder = in_precision(model, "bfloat16"), in_precision(adapter.tokenizer, "bfloat16")
    losses = []
    for episode in open_episodes(world_prompts("boxing")[0].parent):
        frames = torch.from_numpy(episode.read(range(13))).permute(3, 0, 1, 2)[None]
        codes = adapter.encode(frames).grid_values
        assert episode.actions is not None
        grouped = group_actions(torch.from_numpy(episode.actions[None, :13].astype(np.int64)), F)
        losses.append([each.score(codes, grouped).losses.float().mean() for each in (model, half)])
    full, lower = torch.tensor(losses).mean(0).tolist()
    assert abs(lower - full) < 0.005 and 0.2 < full < 1.0
    latents = adapter.tokenizer.indices_to_latents(codes)
    error = (decoder.decode(latents).float() - adapter.tokenizer.decode(latents)).square().mean()
    assert 10 * torch.log10(4 / error) > 50
