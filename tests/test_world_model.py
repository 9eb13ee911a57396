"""The world model predicts each token from what comes before it, with a cache as without, and learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from world_model.actions import ActionSpec, GroupedActions, group_actions
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.embedding import CodeTable, fsq_digits
from world_model.model import WorldModel
from world_model.neighbourhood import neighbours
from world_model.transformer import TransformerConfig

TOKENS = TokenSpec(
    codebook_size=12,
    height=2,
    width=3,
    temporal_factor=2,
    fsq_levels=(4, 3),
    actions=ActionSpec(kind="discrete", size=5),
)
CONFIG = WorldModelConfig(
    tokens=TOKENS,
    max_steps=4,
    transformer=TransformerConfig(width=24, depth=2, heads=2),
    copy_neighbourhood=3,
)
VARIANTS = {
    "full": CONFIG,
    "no actions": replace(CONFIG, tokens=replace(TOKENS, actions=ActionSpec())),
    "continuous": replace(CONFIG, tokens=replace(TOKENS, actions=ActionSpec(kind="continuous", size=2))),
    "no neighbourhood": replace(CONFIG, previous_neighbourhood=0, copy_neighbourhood=0),
    "free embeddings": replace(CONFIG, tokens=replace(TOKENS, fsq_levels=None), previous_neighbourhood=1),
}


def random_model(config: WorldModelConfig = CONFIG) -> WorldModel:
    """With no weight at zero, as after training."""
    model = WorldModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_actions(config: WorldModelConfig, batch: int, steps: int) -> GroupedActions | None:
    assert config.tokens is not None
    spec, frames = config.tokens.actions, 1 + (steps - 1) * config.tokens.temporal_factor
    if spec.kind == "none":
        return None
    if spec.kind == "discrete":
        return group_actions(torch.randint(spec.size, (batch, frames)), config.tokens.temporal_factor)
    return group_actions(torch.randn(batch, frames, spec.size), config.tokens.temporal_factor)


def of_step(actions: GroupedActions | None, step: int) -> GroupedActions | None:
    return None if actions is None else actions[step : step + 1]


def logits_step_by_step(model: WorldModel, codes: Tensor, actions: GroupedActions | None, prefilled: int) -> Tensor:
    """The logits (b, T, H, W, V) of the steps after `prefilled` ones, fed token by token."""
    cache, previous, token = model.init_cache(codes.shape[0]), None, None
    if prefilled:
        past = None if actions is None else actions[:prefilled]
        cache = model.prefill(codes[:, :prefilled], past, cache)
        previous = codes[:, prefilled - 1]
        token = previous[:, -1, -1]
    steps = []
    for step in range(prefilled, codes.shape[1]):
        context = model.step_context(previous, of_step(actions, step), cache)
        logits = []
        for slot in range(model.tokens.tokens_per_step):
            one, cache = model.step(token, context, cache)
            token = codes[:, step].flatten(1)[:, slot]
            logits.append(one)
        steps.append(torch.stack(logits, dim=1).view(codes.shape[0], *codes.shape[2:], -1))
        previous = codes[:, step]
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("prefilled", [0, 1, 3])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_at_every_position(name: str, prefilled: int) -> None:
    config = VARIANTS[name]
    model = random_model(config)
    codes, actions = torch.randint(12, (3, 4, 2, 3)), random_actions(config, 3, 4)
    whole = model(codes, actions)
    stepwise = logits_step_by_step(model, codes, actions, prefilled)
    torch.testing.assert_close(stepwise, whole[:, prefilled:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prefill_in_parts_equals_one() -> None:
    model, codes, actions = random_model(), torch.randint(12, (2, 3, 2, 3)), random_actions(CONFIG, 2, 3)
    assert actions is not None
    whole = model.prefill(codes, actions, model.init_cache(2))
    parts = model.prefill(codes[:, :1], actions[:1], model.init_cache(2))
    parts = model.prefill(codes[:, 1:], actions[1:], parts, previous=codes[:, 0])
    assert parts.length == whole.length == 18
    torch.testing.assert_close(parts.keys, whole.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_token_changes_only_the_predictions_after_it() -> None:
    model, codes, actions = random_model(), torch.randint(12, (1, 3, 2, 3)), random_actions(CONFIG, 1, 3)
    whole = model(codes, actions).flatten(1, 3)
    for slot in range(18):
        changed = codes.clone()
        changed.view(1, -1)[:, slot] = (codes.view(1, -1)[:, slot] + 1) % 12
        difference = (model(changed, actions).flatten(1, 3) - whole).abs().amax(-1)[0]
        assert not difference[: slot + 1].any()
        assert (difference[slot + 1 :] > 1e-6).all()


@torch.no_grad()
def test_a_window_knows_nothing_of_what_led_to_its_first_step() -> None:
    model, codes, actions = random_model(), torch.randint(12, (1, 3, 2, 3)), random_actions(CONFIG, 1, 4)
    assert actions is not None
    later = actions[1:4]  # its first step has known actions, as a window from the middle of an episode
    forgotten = GroupedActions(values=later.values, known=later.known.clone())
    forgotten.known[:, 0] = False
    assert torch.equal(model(codes, later), model(codes, forgotten))


def test_the_loss_scores_the_valid_steps_after_the_first() -> None:
    model, codes, actions = random_model(), torch.randint(12, (2, 4, 2, 3)), random_actions(CONFIG, 2, 4)
    expected = torch.nn.functional.cross_entropy(
        model(codes, actions)[:, 1:].flatten(0, 3), codes[:, 1:].flatten(), reduction="none"
    ).view(2, 3, 2, 3)
    losses = model.token_losses(codes, actions)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    torch.testing.assert_close(
        model.loss(codes, actions, valid), torch.cat([losses[0], losses[1, :1]]).mean(), rtol=1e-4, atol=1e-5
    )


def test_it_learns_a_world_that_follows_its_actions() -> None:
    """Each step is the one before, moved on by its first action: neither copying nor frequencies can tell."""
    torch.manual_seed(1)
    model = WorldModel(replace(CONFIG, copy_neighbourhood=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(80):
        values = torch.randint(5, (16, 4, 2))
        actions = GroupedActions(values=values, known=torch.ones_like(values, dtype=torch.bool))
        moved = torch.cat([torch.zeros(16, 1, dtype=torch.int64), values[:, 1:, 0]], dim=1).cumsum(1)
        codes = (torch.randint(12, (16, 1, 2, 3)) + moved[..., None, None]) % 12
        loss = model.loss(codes, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # log 5 = 1.6 without looking at the actions


def test_gradients_reach_every_parameter() -> None:
    model = random_model().train()
    model.loss(torch.randint(12, (2, 4, 2, 3)), random_actions(CONFIG, 2, 4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_an_untrained_model_guesses_evenly() -> None:
    losses = WorldModel(CONFIG).token_losses(torch.randint(12, (4, 4, 2, 3)), random_actions(CONFIG, 4, 4))
    assert losses.mean().item() == pytest.approx(torch.tensor(12.0).log().item(), abs=0.1)


def test_corruption_and_dropped_actions_are_for_training_alone() -> None:
    codes, actions = torch.randint(12, (2, 4, 2, 3)), random_actions(CONFIG, 2, 4)
    for change in ({"corruption": 1.0}, {"action_dropout": 0.7}):
        model = random_model(replace(CONFIG, **change))  # type: ignore[arg-type]
        assert torch.equal(model.token_losses(codes, actions), model.token_losses(codes, actions))
        model.train()
        assert not torch.equal(model.token_losses(codes, actions), model.token_losses(codes, actions))


def test_a_fork_of_a_cache_goes_on_independently() -> None:
    model, codes, actions = random_model(), torch.randint(12, (1, 2, 2, 3)), random_actions(CONFIG, 1, 2)
    assert actions is not None
    cache = model.prefill(codes[:, :1], actions[:1], model.init_cache(1))
    context = model.step_context(codes[:, 0], actions[1:], cache)
    fork = cache.fork()
    expected, _ = model.step(codes[:, 0, -1, -1], context, cache)
    model.step((codes[:, 0, -1, -1] + 1) % 12, context, cache)
    again, _ = model.step(codes[:, 0, -1, -1], context, fork)
    assert torch.equal(again, expected)


def test_a_step_cannot_begin_in_the_middle_of_another() -> None:
    model = random_model(VARIANTS["no actions"])
    cache = model.init_cache(1)
    context = model.step_context(None, None, cache)
    _, cache = model.step(None, context, cache)
    with pytest.raises(ValueError, match="the cache holds 1 tokens, 6 make a step"):
        model.step_context(torch.zeros(1, 2, 3, dtype=torch.int64), None, cache)
    with pytest.raises(ValueError, match="the cache holds 0 tokens.*previous was given"):
        model.step_context(torch.zeros(1, 2, 3, dtype=torch.int64), None, model.init_cache(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_model_is_read_back(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model = random_model(config)
    model.adapter_hash = "abc"
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert again.config == config and again.adapter_hash == "abc"
    codes, actions = torch.randint(12, (1, 2, 2, 3)), random_actions(config, 1, 2)
    assert torch.equal(again(codes, actions), model(codes, actions))


def test_weights_of_another_architecture_are_one_clear_error(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "a")
    random_model(VARIANTS["no neighbourhood"]).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="the weights in .*b are those of another architecture: .* is unexpected"):
        WorldModel.from_pretrained(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_text("regularizer: fsq\n")
    with pytest.raises(ValueError, match="holds a model of another kind"):
        WorldModel.from_pretrained(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        WorldModel.from_pretrained(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        WorldModel.from_pretrained(tmp_path / "c")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"previous_neighbourhood": 2}, "previous_neighbourhood must be odd, or 0 for none, got 2"),
        ({"corruption": 1.5}, r"corruption must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig(**settings)


def test_codes_of_another_grid_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(b, T, 2, 3\), got torch.int64 of \(1, 2, 3, 3\)"):
        random_model()(torch.zeros(1, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at most 4 latent steps \(max_steps\), got 5"):
        random_model()(torch.zeros(1, 5, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="fsq_levels must multiply to codebook_size, 12, got"):
        replace(TOKENS, fsq_levels=(4, 4))
    with pytest.raises(ValueError, match="tokens must be set"):
        WorldModel(WorldModelConfig())
    with pytest.raises(ValueError, match="tokens must be those of the data"):
        CONFIG.for_tokens(replace(TOKENS, height=4))


def test_the_first_fsq_level_is_the_least_significant_digit() -> None:
    digits = fsq_digits((4, 3))
    assert torch.equal(digits @ torch.tensor([1, 4]), torch.arange(12))


def test_codes_with_shared_digits_share_their_embedding() -> None:
    table = CodeTable(12, 8, (4, 3), std=1.0)()
    # code = d0 + 4 d1: without free vectors yet, differences along one digit don't depend on the other
    torch.testing.assert_close(table[1] - table[0], table[9] - table[8])


def test_neighbours_are_the_codes_around_each_place() -> None:
    around = neighbours(torch.arange(12).view(1, 3, 4), 3)
    assert around.shape == (1, 3, 4, 9)
    assert around[0, 1, 1].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert around[0, 0, 3].tolist() == [-1, -1, -1, 2, 3, -1, 6, 7, -1]
    assert torch.equal(neighbours(torch.arange(12).view(3, 4), 1)[..., 0], torch.arange(12).view(3, 4))
