"""A world model predicts the rewards of a step's frames and whether the episode ends, if it is built to."""

from dataclasses import replace

import pytest
import torch
from recordings import tiny_adapter
from world_models import CONFIG, VARIANTS, of_step, random_actions, random_model, random_tokens

from world_model import Decoding, Sampler, StepGenerator, WorldModel, WorldModelConfig, rollout
from world_model.actions import ActionSpec, group_actions
from world_model.architecture import OutcomeConfig, TokenSpec
from world_model.heads.outcomes import OutcomeTargets, reward_values, two_hot

OUTCOMES = OutcomeConfig(width=16)
NAN = float("nan")


def with_outcomes(config: WorldModelConfig) -> WorldModelConfig:
    return replace(config, outcomes=OUTCOMES)


def test_the_mean_of_two_hot_weights_is_the_reward() -> None:
    values = reward_values(1000.0)
    rewards = torch.tensor([-1000.0, -3.7, -1.0, 0.0, 1e-3, 0.5, 1.0, 42.0, 1000.0])
    weights = two_hot(rewards, values)
    torch.testing.assert_close(weights @ values, rewards, rtol=1e-5, atol=1e-6)
    assert ((weights > 0).sum(-1) <= 2).all() and torch.allclose(weights.sum(-1), torch.ones(9))


def test_a_new_head_predicts_no_reward() -> None:
    outcomes = (
        WorldModel(with_outcomes(CONFIG))
        .eval()
        .window_outcomes(random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3))
    )
    assert outcomes.rewards is not None and outcomes.end_probability is not None
    assert outcomes.rewards.shape == (2, 2, 2) and outcomes.rewards.abs().max() < 1e-4
    assert outcomes.end_probability.tolist() == [[0.5, 0.5]] * 2


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["full", "factored", "patches", "no actions", "corrupted"])
def test_outcomes_of_drawn_steps_are_those_of_the_whole_window(name: str, guidance: float) -> None:
    config = with_outcomes(VARIANTS[name])
    if guidance > 1:
        if name in ("no actions", "patches"):
            pytest.skip("no guidance")
        config = replace(config, action_dropout=0.1)
    model = random_model(config)
    past, actions = random_tokens(config, 2, 1), random_actions(config, 2, 4)
    generator = StepGenerator(model, past, of_step(actions, 0), Sampler(guidance=guidance))
    drawn, rewards, ends = [past], [], []
    for step in range(1, 4):
        drawn.append(generator.step(of_step(actions, step))[:, None])
        assert generator.outcomes is not None
        rewards.append(generator.outcomes.rewards)
        ends.append(generator.outcomes.end_probability)
    whole = model.window_outcomes(torch.cat(drawn, dim=1), actions)
    torch.testing.assert_close(torch.stack(rewards, dim=1), whole.rewards, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(torch.stack(ends, dim=1), whole.end_probability, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("full", Decoding(order="diagonal")),
        pytest.param("full", Decoding(compiled=True), marks=pytest.mark.slow),
        ("masked", Decoding()),
        ("masked patches", Decoding()),
    ],
)
def test_every_order_gives_outcomes(name: str, decoding: Decoding) -> None:
    config = with_outcomes(VARIANTS[name])
    generator = StepGenerator(
        random_model(config), random_tokens(config, 3, 2), random_actions(config, 3, 2), Sampler(), decoding=decoding
    )
    generator.step(of_step(random_actions(config, 3, 2), 1))
    assert generator.outcomes is not None
    rewards, ended = generator.outcomes.rewards, generator.outcomes.terminated
    assert rewards is not None and ended is not None
    assert rewards.shape == (3, 2) and rewards.isfinite().all() and ended.shape == (3,)
    if decoding.compiled:
        plain = StepGenerator(
            random_model(config), random_tokens(config, 3, 2), random_actions(config, 3, 2), Sampler()
        )
        plain.step(of_step(random_actions(config, 3, 2), 1))
        assert plain.outcomes is not None
        torch.testing.assert_close(rewards, plain.outcomes.rewards, rtol=1e-3, atol=1e-2)


def test_a_rollout_has_an_outcome_for_each_frame() -> None:
    adapter = tiny_adapter()
    tokens = TokenSpec(
        codebook_size=12,
        height=2,
        width=2,
        temporal_factor=4,
        fsq_levels=(4, 3),
        actions=ActionSpec(kind="discrete", size=3),
    )
    settings = {
        "prompt": torch.zeros(2, 3, 5, 16, 16),
        "actions": torch.zeros(2, 13, dtype=torch.int64),
        "num_frames": 8,
    }
    for outcomes in (OUTCOMES, replace(OUTCOMES, ends=False), None):
        model = random_model(replace(CONFIG, tokens=tokens, outcomes=outcomes))
        result = rollout(model, adapter, **settings)  # type: ignore[arg-type]
        assert (result.rewards is None) == (outcomes is None)
        assert (result.terminated is None) == (outcomes is None or not outcomes.ends)
        if result.rewards is not None:
            assert result.rewards.shape == (2, 13) and not result.rewards[:, :5].any() and result.rewards[:, 5:].all()
        if result.terminated is not None:
            assert result.terminated.shape == (2, 13) and not result.terminated[:, [5, 6, 7, 9, 10, 11]].any()


def test_unknown_outcomes_do_not_count() -> None:
    config = with_outcomes(CONFIG)
    model, tokens, actions = random_model(config), random_tokens(config, 2, 3), random_actions(config, 2, 3)
    rewards, ended = torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.uint8)

    def losses(valid: torch.Tensor | None = None) -> tuple[float, float]:
        found = model.losses(tokens, actions, valid, OutcomeTargets(rewards=rewards, terminated=ended))
        assert found.rewards is not None and found.ends is not None
        return found.rewards.item(), found.ends.item()

    both = losses()
    rewards[1], ended[1] = NAN, 2
    first = losses()
    assert 0 < first[0] < both[0] and 0 < first[1] < both[1]
    assert losses(torch.tensor([[True] * 3, [True, False, False]])) == pytest.approx([2 * x for x in first])
    rewards[0], ended[0] = NAN, 2
    assert losses() == (0, 0)
    assert torch.equal(model.losses(tokens, actions).tokens, model.loss(tokens, actions))


def test_rewards_and_ends_are_learned() -> None:
    """The reward is 3 in frames under action 4, and an episode ends where its first token is 11."""
    torch.manual_seed(0)
    config = with_outcomes(replace(CONFIG, transformer=replace(CONFIG.transformer, width=32)))
    model = WorldModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        tokens, taken = torch.randint(12, (32, 3, 2, 3)), torch.randint(5, (32, 5))
        grouped = group_actions(taken, 2)
        targets = OutcomeTargets(
            rewards=torch.where(grouped.values == 4, 3.0, 0.0), terminated=(tokens[:, :, 0, 0] == 11).to(torch.uint8)
        )
        losses = model.losses(tokens, grouped, None, targets)
        assert losses.rewards is not None and losses.ends is not None
        optimizer.zero_grad()
        (losses.rewards + losses.ends).backward()
        optimizer.step()
    outcomes = model.eval().window_outcomes(tokens, grouped)
    assert outcomes.rewards is not None and outcomes.terminated is not None and targets.rewards is not None
    assert (outcomes.rewards - targets.rewards[:, 1:]).abs().mean() < 0.3  # a constant: 0.96
    assert targets.terminated is not None
    assert (outcomes.terminated == (targets.terminated[:, 1:] == 1)).float().mean() > 0.97  # a constant: 0.92


def test_an_outcome_head_without_outcomes_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards or ends must be true"):
        OutcomeConfig(rewards=False, ends=False)
    with pytest.raises(ValueError, match="built without outcomes"):
        random_model(CONFIG).window_outcomes(random_tokens(CONFIG, 1, 2), random_actions(CONFIG, 1, 2))
