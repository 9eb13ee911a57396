"""An imagination advances, forks and changes its sampler, and every future is that of a rollout of its own."""

from dataclasses import replace

import pytest
import torch
from recordings import tiny_adapter, tiny_kl_adapter
from torch import Tensor
from world_models import CONFIG, FLOW, MASKED, random_model

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.actions import ActionSpec, group_actions
from world_model.architecture import OutcomeConfig, WorldModelConfig
from world_model.decoding import Decoding
from world_model.generation.window import ContextWindow
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.imagination import Imagination
from world_model.rollout.rollout import rollout

F = 4  # frames per latent step
SAMPLER = Sampler(seed=3)
KINDS = {
    "causal": replace(CONFIG, action_dropout=0.2, outcomes=OutcomeConfig(width=16)),
    "factored": replace(CONFIG, vocabulary="factored"),
    "masked": MASKED["masked"],
    "patches": FLOW,
    "masked patches": MASKED["masked patches"],
}


def world(
    config: WorldModelConfig = KINDS["causal"], spec: ActionSpec | None = None
) -> tuple[WorldModel, TokenizerAdapter]:
    """A toy world of 16 x 16 pixels, with its tokens' grid and actions as those of the adapter."""
    assert config.tokens is not None
    changes = {} if config.tokens.kind == "discrete" else {"patch_dim": 4}
    tokens = replace(config.tokens, width=2, temporal_factor=F, actions=spec or config.tokens.actions, **changes)
    adapter = tiny_adapter() if tokens.kind == "discrete" else tiny_kl_adapter()
    return random_model(replace(config, tokens=tokens)), adapter


def video(batch: int, frames: int = 1 + F) -> Tensor:
    return torch.rand(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def actions(batch: int, frames: int, seed: int = 2) -> Tensor:
    return torch.randint(5, (batch, frames), generator=torch.Generator().manual_seed(seed))


def begin(name: str = "causal", batch: int = 2, sampler: Sampler = SAMPLER, **settings: object) -> Imagination:
    model, adapter = world(KINDS[name])
    return Imagination(
        model,
        adapter,
        prompts=video(batch),
        actions=actions(batch, 1 + F),
        sampler=sampler,
        **settings,  # type: ignore[arg-type]
    )


def advance(imagination: Imagination, acts: Tensor) -> tuple[Tensor, Tensor]:
    """Take the steps of actions (b, T f); -> their frames (b, 3, T f, h, w) and tokens (b, T, ...)."""
    steps = [imagination.step(chunk) for chunk in acts.split(F, dim=1)]
    return torch.cat([step.frames for step in steps], dim=2), torch.stack([step.tokens for step in steps], dim=1)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_steps_give_the_tokens_and_frames_of_a_rollout(name: str) -> None:
    """Beyond the model's context, too."""
    imagination, future = begin(name), actions(2, 5 * F, seed=4)
    whole = rollout(
        imagination.model,
        imagination.adapter,
        prompt=video(2),
        actions=torch.cat([actions(2, 1 + F), future], dim=1),
        num_frames=5 * F,
        sampler=SAMPLER,
    )
    frames, tokens = advance(imagination, future)
    same((frames, tokens), (whole.imagined, whole.tokens.grid_values[:, 2:]))
    assert torch.equal(imagination.frames, frames[:, :, -F:])


@pytest.mark.parametrize("name", ["causal", "masked", "patches"])
@pytest.mark.parametrize("steps", [1, 3])  # max_steps is 4
def test_a_fork_continues_as_its_origin_would(name: str, steps: int) -> None:
    before, future, other = actions(2, steps * F, 4), actions(2, 3 * F, 5), actions(2, 3 * F, 6)
    imagination = begin(name)
    if steps:
        advance(imagination, before)
    fork = imagination.fork()
    assert torch.equal(fork.frames, imagination.frames)
    straight = begin(name)
    if steps:
        advance(straight, before)
    expected = advance(straight, future)
    advance(imagination, other)  # the origin goes its own way first
    same(advance(fork, future), expected)
    same(advance(fork.fork(), future), advance(fork, future))


def test_a_forked_origin_goes_on_undisturbed() -> None:
    imagination, future = begin(), actions(2, 4 * F, 5)
    advance(imagination.fork(), actions(2, 4 * F, 6))
    same(advance(imagination, future), advance(begin(), future))


def test_futures_of_a_fork_are_rollouts_of_their_own() -> None:
    """Each row draws the numbers of its index, whatever the rest of the batch."""
    imagination, future = begin(), actions(6, 4 * F, 5)
    frames, tokens = advance(imagination.fork(3, indices=[7, 8, 9, 4, 5, 6]), future)
    assert frames.shape == (6, 3, 4 * F, 16, 16)
    for row, index in ((0, 7), (2, 9), (5, 6)):
        model, adapter = imagination.model, imagination.adapter
        alone = Imagination(
            model,
            adapter,
            prompts=video(2)[row // 3 : row // 3 + 1],
            actions=actions(2, 1 + F)[row // 3 : row // 3 + 1],
            sampler=SAMPLER,
            indices=[index],
        )
        same(advance(alone, future[row : row + 1]), (frames[row : row + 1], tokens[row : row + 1]))


@pytest.mark.parametrize("name", ["causal", "masked", "patches"])
@pytest.mark.parametrize("steps", [0, 2])
def test_another_sampler_continues_the_same_past(name: str, steps: int) -> None:
    """As if the past had been that sampler's: the tokens drawn later depend on the past's tokens alone."""
    before, future = actions(2, steps * F, 4), actions(2, 2 * F, 5)
    imagination = begin(name)
    if steps:
        advance(imagination, before)
    held = imagination.fork()
    warm = imagination.with_sampler(replace(SAMPLER, temperature=0.2))
    drawn = advance(warm, future)
    same(advance(held, future), advance(imagination, future))  # the origin keeps its own sampler
    assert not torch.equal(drawn[1], advance(held.fork(), future)[1])
    back = warm.with_sampler(SAMPLER)
    assert back.sampler == SAMPLER and warm.sampler.temperature == 0.2
    if steps == 0:
        same(drawn, advance(begin(name, sampler=replace(SAMPLER, temperature=0.2)), future))


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_preparing_a_step_changes_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It re-prefills a full context ahead of the step, which then has nothing left of it to do."""
    future = actions(2, 5 * F, 5)
    expected = advance(begin(name), future)
    prepared, drawn = begin(name), []
    for chunk in future.split(F, dim=1):
        prepared.prepare()
        prepared.prepare()
        with monkeypatch.context() as patch:
            patch.setattr(ContextWindow, "_prefilled_window", None)
            drawn.append(prepared.step(chunk))
    frames = torch.cat([step.frames for step in drawn], dim=2)
    same((frames, torch.stack([step.tokens for step in drawn], dim=1)), expected)


def test_steps_report_their_outcomes() -> None:
    imagination, future = begin(), actions(2, 3 * F, seed=4)
    acts = torch.cat([actions(2, 1 + F), future], dim=1)
    model, adapter = imagination.model, imagination.adapter
    whole = rollout(model, adapter, prompt=video(2), actions=acts, num_frames=3 * F, sampler=SAMPLER)
    assert whole.rewards is not None and whole.terminated is not None
    for i, chunk in enumerate(future.split(F, dim=1)):
        step, of_step = imagination.step(chunk), slice(1 + F + i * F, 1 + F + (i + 1) * F)
        assert step.rewards is not None and step.terminated is not None and step.terminated.shape == (2,)
        torch.testing.assert_close(step.rewards, whole.rewards[:, of_step], rtol=1e-4, atol=1e-4)
        assert torch.equal(step.terminated, whole.terminated[:, of_step].any(dim=1))
    assert begin("masked").step(actions(2, F)).rewards is None


def test_guidance_may_begin_and_end_on_the_way() -> None:
    guided, future = replace(SAMPLER, guidance=3.0), actions(2, 4 * F, 5)
    expected = advance(begin(sampler=guided), future)
    same(advance(begin().with_sampler(guided), future), expected)
    plain = begin(sampler=guided).with_sampler(SAMPLER)
    same(advance(plain, future), advance(begin(), future))
    with pytest.raises(ValueError, match="guidance 3.0 needs a model that was trained with actions"):
        begin("masked").with_sampler(guided)


def test_another_seed_draws_the_numbers_of_that_seed() -> None:
    other, future = replace(SAMPLER, seed=9), actions(2, 4 * F, 5)
    same(advance(begin().with_sampler(other), future), advance(begin(sampler=other), future))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("decoding", [None, Decoding(order="diagonal")])
def test_entropies_are_those_of_the_drawn_distributions(name: str, decoding: Decoding | None) -> None:
    """And asking for them changes nothing that is drawn."""
    if decoding is not None and "masked" in name:
        return
    imagination, acts = begin(name, decoding=decoding), actions(2, F, 4)
    plain = imagination.fork().step(acts)
    step = imagination.step(acts, entropy=True)
    torch.testing.assert_close(plain.tokens, step.tokens, rtol=1e-4, atol=1e-4)
    assert plain.entropy is None
    if "patches" in name:
        assert step.entropy is None
        return
    assert step.entropy is not None and step.entropy.shape == (2, 2, 2)
    assert (step.entropy > 0).all() and (step.entropy < torch.tensor(12.0).log() + 1e-5).all()


def test_entropies_are_in_nats_and_before_temperature() -> None:
    """Raster order draws from the logits of the whole window, in which the entropies can be computed anew."""
    model, adapter = world()
    acts = actions(2, 1 + 2 * F)
    for temperature in (0.0, 2.0):
        sampler = replace(SAMPLER, temperature=temperature)
        imagination = Imagination(model, adapter, prompts=video(2), actions=acts[:, : 1 + F], sampler=sampler)
        step = imagination.step(acts[:, 1 + F :], entropy=True)
        codes = torch.cat([adapter.encode(video(2)).grid_values, step.tokens[:, None]], dim=1)
        with torch.no_grad():
            log_p = model.logits(codes, group_actions(acts, F))[0][:, -1].log_softmax(-1)
        torch.testing.assert_close(step.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-4)


def test_worlds_without_actions_take_none() -> None:
    model, adapter = world(CONFIG, ActionSpec())
    imagination = Imagination(model, adapter, prompts=video(1))
    assert imagination.step().frames.shape == (1, 3, F, 16, 16)
    with pytest.raises(ValueError, match="actions must be left out, since the world model was trained without"):
        imagination.step(actions(1, F))
    with pytest.raises(ValueError, match="Imagination: actions must be given, since the world model was trained with"):
        begin().step()
    with pytest.raises(ValueError, match=r"Imagination: actions must be the 4 .* step .*\(2, 4\), got \(2, 3\)"):
        begin().step(actions(2, 3))


@pytest.mark.parametrize("name", KINDS)
def test_rows_start_again_from_other_prompts_while_the_rest_go_on(name: str) -> None:
    """Each is an imagination of its own, on both sides of a fork; frames are decoded from each row's own past."""
    imagination, acts = begin(name), actions(2, 5 * F, seed=4)
    straight = advance(begin(name), acts)
    advance(imagination, acts[:, :F])
    fork = imagination.fork()
    other, others = video(3, 1 + 2 * F)[2:], actions(3, 1 + 2 * F, seed=7)[2:]
    imagination.reset_rows([1], other, others, indices=[5])
    assert torch.equal(imagination.frames[1:], other[:, :, -F:])
    frames, tokens = advance(imagination, acts[:, F:])
    alone = Imagination(
        imagination.model, imagination.adapter, prompts=other, actions=others, sampler=SAMPLER, indices=[5]
    )
    same(advance(alone, acts[1:, F:]), (frames[1:], tokens[1:]))
    same((straight[0][:1, :, F:], straight[1][:1, 1:]), (frames[:1], tokens[:1]))
    same(advance(fork, acts[:, F:]), (straight[0][:, :, F:], straight[1][:, 1:]))


def test_prompts_that_do_not_fit_the_rows_are_refused_and_change_nothing() -> None:
    imagination, acts = begin(), actions(2, F, seed=4)
    with pytest.raises(ValueError, match="prompt must have 1 \\+ k \\* 4 frames"):
        imagination.reset_rows([0], video(1, 3), indices=[5])
    with pytest.raises(ValueError, match="DecoderStream: rows must come .* and be as many; got 1 rows for 2"):
        imagination.reset_rows([0, 1], video(1), actions(1, 1 + F), indices=[5, 6])
    with pytest.raises(ValueError, match="indices must name each of the 1 rollouts, got 2"):
        imagination.reset_rows([0], video(1), actions(1, 1 + F), indices=[5, 6])
    with pytest.raises(ValueError, match=r"Imagination: rows must be different ones of the 2 rollouts, .* got \[2\]"):
        imagination.reset_rows([2], video(1), actions(1, 1 + F), indices=[5])
    same(advance(imagination, acts), advance(begin(), acts))
