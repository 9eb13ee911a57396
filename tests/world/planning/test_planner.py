"""A planner finds the actions that its world model imagines to be best."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from recordings import tiny_adapter
from world_models import CONFIG, random_model

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model import Planner, Sampler, WorldModel, rollout
from world_model.actions import ActionSpec
from world_model.architecture import OutcomeConfig, TokenSpec
from world_model.decoding import Decoding
from world_model.planning.proposals import ChoiceProposal, GaussianProposal

DISCRETE, CONTINUOUS = ActionSpec(kind="discrete", size=3), ActionSpec(kind="continuous", size=2)
PAST = torch.linspace(-1, 1, 3 * 9 * 16 * 16).view(1, 3, 9, 16, 16)
RASTER = Decoding(order="raster")


def tiny_world(
    actions: ActionSpec = DISCRETE, outcomes: OutcomeConfig | None = None
) -> tuple[WorldModel, TokenizerAdapter]:
    tokens = TokenSpec(codebook_size=12, height=2, width=2, temporal_factor=4, fsq_levels=(4, 3), actions=actions)
    return random_model(replace(CONFIG, tokens=tokens, max_steps=6, outcomes=outcomes)), tiny_adapter()


def past_actions(spec: ActionSpec, rows: int = 1) -> torch.Tensor:
    return torch.zeros(rows, 9, dtype=torch.int64) if spec.kind == "discrete" else torch.zeros(rows, 9, spec.size)


@pytest.mark.parametrize("method", ["shooting", "cem", "mppi"])
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_plan_holds_each_action_for_a_latent_step(spec: ActionSpec, method: str) -> None:
    model, adapter = tiny_world(spec, OutcomeConfig(width=8))
    planner = Planner(model, adapter, method=method, horizon=8, candidates=6, elites=2, action_range=(-1.0, 1.0))
    plan = planner.plan(PAST.expand(2, -1, -1, -1, -1), past_actions(spec, 2))
    assert plan.shape == ((2, 8) if spec.kind == "discrete" else (2, 8, 2))
    assert torch.equal(plan[:, :4], plan[:, :1].expand_as(plan[:, :4]))
    assert torch.equal(plan[:, 4:], plan[:, 4:5].expand_as(plan[:, 4:]))
    if spec.kind == "continuous":
        assert plan.abs().max() <= 1


@pytest.mark.parametrize(("settings", "mean", "std"), [({}, 50, 10), ({"action_mean": 3.0, "action_std": 2.0}, 3, 2)])
def test_plans_begin_like_the_actions_of_the_training_data(settings: dict[str, float], mean: int, std: int) -> None:
    """They began with a deviation of 1, which is nothing to a joint that is moved by hundreds."""
    model, adapter = tiny_world(CONTINUOUS, OutcomeConfig(width=8))
    assert model.action_normalization is not None
    model.action_normalization.mean.fill_(50)
    model.action_normalization.std.fill_(10)
    planner = Planner(model, adapter, method="shooting", horizon=4, candidates=2, **settings)
    plans = planner.plan(PAST.expand(40, -1, -1, -1, -1), None)[:, 0]
    assert plans.mean().item() == pytest.approx(mean, abs=std / 2)
    assert plans.std().item() == pytest.approx(std, rel=0.4)


def test_the_best_of_all_plans_is_found() -> None:
    """With 3 actions and 2 steps there are 9 plans; each one's reward is that of its rollout."""
    model, adapter = tiny_world(outcomes=OutcomeConfig(width=8, ends=False))
    rewards = {}
    for first in range(3):
        for second in range(3):
            actions = torch.tensor([[0] * 9 + [first] * 4 + [second] * 4])
            result = rollout(model, adapter, prompt=PAST, actions=actions, num_frames=8, sampler=Sampler(temperature=0))
            assert result.rewards is not None
            rewards[first, second] = result.rewards.sum().item()
    planner = Planner(
        model, adapter, method="shooting", horizon=8, candidates=200, decoding=RASTER, precision="float32"
    )
    plan = planner.plan(PAST, past_actions(DISCRETE))[0].tolist()
    assert (plan[0], plan[4]) == max(rewards, key=lambda pair: rewards[pair])


def test_rewards_after_an_end_do_not_count() -> None:
    model, adapter = tiny_world(outcomes=OutcomeConfig(width=8))
    planner = Planner(model, adapter, horizon=8, discount=0.5, decoding=RASTER, precision="float32")
    plans = torch.tensor([[[0, 2], [1, 1]]])
    scores = planner._scores(planner._past(PAST, past_actions(DISCRETE)), plans, None)
    generator = planner._past(PAST, past_actions(DISCRETE)).generator
    expected, alive = 0.0, 1.0
    for step, action in enumerate((0, 2)):
        generator.step(whole(action))
        assert generator.outcomes is not None and generator.outcomes.rewards is not None
        discounts = 0.5 ** torch.arange(4 * step, 4 * step + 4)
        expected += alive * (generator.outcomes.rewards[0] * discounts).sum().item()
        alive *= 1 - generator.outcomes.end_probability.item()  # type: ignore[union-attr]
    assert scores[0, 0].item() == pytest.approx(expected, rel=1e-4)


def whole(action: int) -> Any:
    from world_model.planning.planner import whole_steps

    return whole_steps(torch.full((1, 1, 4), action))


def test_a_goal_is_reached_by_the_actions_that_lead_to_it() -> None:
    model, adapter = tiny_world()
    planner = Planner(model, adapter, method="shooting", horizon=8, candidates=60, precision="float32")
    futures = {}
    for first in range(3):
        for second in range(3):
            future = planner._past(PAST, past_actions(DISCRETE))
            for action in (first, second):
                frames = future.step(torch.full((1, 4), action)).frames
            futures[first, second] = frames[0, :, -1]
    for goal in futures.values():
        plan = planner.plan(PAST, past_actions(DISCRETE), goal)[0].tolist()
        assert (futures[plan[0], plan[4]] - goal).square().mean() < 1e-8


def test_the_oldest_frames_give_way_to_the_plan() -> None:
    model, adapter = tiny_world(outcomes=OutcomeConfig(width=8))
    planner = Planner(model, adapter, horizon=16, candidates=3, elites=1)
    assert planner._past(PAST, past_actions(DISCRETE)).generator.window.tokens.shape[1] == 2  # of max_steps 6
    assert planner.plan(PAST, None).shape == (1, 16)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_proposals_move_to_the_best_candidates(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    choices = ChoiceProposal(1, 4, 6, generator)
    normal = GaussianProposal(1, 4, torch.zeros(2), torch.ones(2), generator)
    wanted, target = torch.tensor([1, 5, 0, 3]), torch.tensor([0.5, -1.0])
    for _ in range(8):
        plans = choices.sample(64)
        choices.fit(plans, weights((plans == wanted).sum(-1).float(), name))
        plans = normal.sample(64)
        normal.fit(plans, weights(-(plans - target).square().flatten(2).sum(-1), name))
    assert torch.equal(choices.mode[0], wanted)
    torch.testing.assert_close(normal.mode[0], target.expand(4, 2), atol=0.25, rtol=0)


def weights(scores: torch.Tensor, method: str) -> torch.Tensor:
    model, adapter = tiny_world()
    return Planner(model, adapter, method=method)._weights(scores)


def test_a_few_candidates_cover_all_choices() -> None:
    plans = ChoiceProposal(2, 3, 5, torch.Generator().manual_seed(0)).sample(5)
    assert plans.sort(dim=1).values.tolist() == [[[i] * 3 for i in range(5)]] * 2


def test_futures_may_be_imagined_in_bfloat16() -> None:
    model, adapter = tiny_world(outcomes=OutcomeConfig(width=8))
    planner = Planner(model, adapter, horizon=8, candidates=9, precision="bfloat16")
    assert planner.model.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert planner.plan(PAST, past_actions(DISCRETE)).shape == (1, 8)


def test_the_same_seed_gives_the_same_plan() -> None:
    model, adapter = tiny_world(outcomes=OutcomeConfig(width=8))
    plans = [Planner(model, adapter, horizon=8, candidates=9, seed=3).plan(PAST, None) for _ in range(2)]
    assert torch.equal(*plans)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 6}, r"horizon must be a multiple of 4 .* got 6; the next is 8"),
        ({"horizon": 24}, "horizon must be less than the model's context, 6 latent steps of 4 frames, got 24"),
        ({"method": "random"}, "method must be 'shooting', 'cem' or 'mppi', got 'random'"),
        ({"candidates": 4, "elites": 8}, "elites must be at most candidates, 4, got 8"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"discount": 0.0}, "discount must be above 0"),
        ({"action_range": (1.0, 1.0)}, "action_range must be the smallest and the largest"),
        ({"tries": 3}, "tries"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    model, adapter = tiny_world()
    with pytest.raises((ValueError, TypeError), match=message):
        Planner(model, adapter, **settings)


def test_pasts_and_goals_that_do_not_fit_are_refused() -> None:
    model, adapter = tiny_world()
    planner = Planner(model, adapter, horizon=8, candidates=9)
    with pytest.raises(ValueError, match="without a goal the world model must predict rewards"):
        planner.plan(PAST, None)
    with pytest.raises(ValueError, match=r"past_actions must have one action for each of the 9 frames"):
        planner.plan(PAST, torch.zeros(1, 5, dtype=torch.int64), PAST[0, :, 0])
    with pytest.raises(ValueError, match=r"goal must be a picture \(3, 16, 16\)"):
        planner.plan(PAST, None, torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="must have actions, got one without"):
        Planner(tiny_world(ActionSpec())[0], adapter)
