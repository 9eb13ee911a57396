"""The world model predicts each token from what comes before it, equally with and without a cache, and learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from world_models import CAUSAL, CONFIG, FLOW, MASKED, PATCHES, TOKENS, VARIANTS, of_step, random_actions, random_model
from world_models import random_tokens as tokens_for

from world_model.actions import ActionSpec, GroupedActions
from world_model.architecture import FlowConfig, WorldModelConfig
from world_model.decoding import raster_groups
from world_model.inputs.corruption import corrupt_tokens, drop_actions
from world_model.inputs.embedding import CodeTable, fsq_digits
from world_model.inputs.masking import random_known
from world_model.inputs.neighborhood import local_window
from world_model.model import WorldModel
from world_model.prediction.causal import CausalPrediction
from world_model.prediction.masked import MaskedPrediction
from world_model.window_scores import own_draws


def causal(model: WorldModel) -> CausalPrediction:
    assert isinstance(model.prediction, CausalPrediction)
    return model.prediction


def masked(model: WorldModel) -> MaskedPrediction:
    assert isinstance(model.prediction, MaskedPrediction)
    return model.prediction


def hidden_step_by_step(model: WorldModel, tokens: Tensor, actions: GroupedActions | None, prefilled: int) -> Tensor:
    """Hidden states (b, T, H, W, d) of the steps after `prefilled` ones, token by token."""
    cache, previous = model.init_cache(tokens.shape[0]), None
    if prefilled:
        past = None if actions is None else actions[:prefilled]
        cache = model.prefill(tokens[:, :prefilled], past, cache)
        previous = tokens[:, prefilled - 1]
    groups = raster_groups(model.tokens.height, model.tokens.width, model.device)
    steps = []
    for step in range(prefilled, tokens.shape[1]):
        context = model.step_context(previous, of_step(actions, step), cache)
        truth = tokens[:, step].flatten(1, 2)
        current = torch.zeros_like(truth)
        hidden = []
        for group in groups:
            hidden.append(causal(model).step(current, group, context, cache))
            current[:, group.positions] = truth[:, group.positions]
        steps.append(torch.cat(hidden, dim=1).unflatten(1, tokens.shape[2:4]))
        cache = cache.advanced(model.tokens.tokens_per_step)
        previous = tokens[:, step]
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("prefilled", [0, 1, 3])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_window_at_every_position(name: str, prefilled: int) -> None:
    config = CAUSAL[name]
    model, tokens, actions = random_model(config), tokens_for(config, 3, 4), random_actions(config, 3, 4)
    whole = model(tokens, actions)
    stepwise = hidden_step_by_step(model, tokens, actions, prefilled)
    torch.testing.assert_close(stepwise, whole[:, prefilled:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MASKED)
@torch.no_grad()
def test_a_masked_step_after_a_cache_equals_the_whole_window(name: str) -> None:
    config = MASKED[name]
    model, tokens, actions = random_model(config), tokens_for(config, 2, 4), random_actions(config, 2, 4)
    known = torch.rand(2, 3, 2, 3) < 0.5
    whole = masked(model).hidden(model.window_inputs(tokens, actions), known=known)
    for step in range(1, 4):
        assert actions is not None
        cache = model.prefill(tokens[:, :step], actions[:step], model.init_cache(2))
        context = model.step_context(tokens[:, step - 1], of_step(actions, step), cache)
        current, given = tokens[:, step].flatten(1, 2), known[:, step - 1].flatten(1)
        hidden = masked(model).predict_masked(current, given, context, cache)
        torch.testing.assert_close(hidden, whole[:, step - 1].flatten(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MASKED)
@torch.no_grad()
def test_a_masked_prediction_sees_the_steps_before_and_the_known_tokens_of_its_own(name: str) -> None:
    config = MASKED[name]
    model, tokens, actions = random_model(config), tokens_for(config, 1, 4), random_actions(config, 1, 4)
    known = torch.zeros(1, 3, 2, 3, dtype=torch.bool)
    known[:, :, 0, 1] = True
    whole = masked(model).hidden(model.window_inputs(tokens, actions), known=known)
    for step in range(4):
        for row, column in ((0, 1), (1, 2)):
            changed = tokens.clone()
            changed[:, step, row, column] = (changed[:, step, row, column] + 1) % 12
            again = masked(model).hidden(model.window_inputs(changed, actions), known=known)
            difference = (again - whole).abs().amax(-1)[0]
            assert not difference[: max(0, step - 1)].any()
            own = step >= 1 and (row, column) == (0, 1)
            assert step == 0 or bool((difference[step - 1] > 1e-6).all()) == own, (step, row, column)
            assert (difference[step:] > 1e-6).all()


@torch.no_grad()
def test_two_prefills_equal_one() -> None:
    model, codes, actions = random_model(), torch.randint(12, (2, 3, 2, 3)), random_actions(CONFIG, 2, 3)
    assert actions is not None
    whole = model.prefill(codes, actions, model.init_cache(2))
    two = model.prefill(codes[:, :1], actions[:1], model.init_cache(2))
    two = model.prefill(codes[:, 1:], actions[1:], two, previous=codes[:, 0])
    assert two.length == whole.length == 18
    torch.testing.assert_close(two.own.keys, whole.own.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.own.values, whole.own.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["full", "factored", "patches"])
@torch.no_grad()
def test_a_token_changes_only_the_predictions_after_it(name: str) -> None:
    config = CAUSAL[name]
    model, tokens, actions = random_model(config), tokens_for(config, 1, 3), random_actions(config, 1, 3)
    whole = model(tokens, actions).flatten(1, 3)
    for position in range(18):
        changed = tokens.clone().flatten(1, 3)
        changed[:, position] = (changed[:, position] + 1) % 12
        difference = (model(changed.view_as(tokens), actions).flatten(1, 3) - whole).abs().amax(-1)[0]
        assert not difference[: position + 1].any()
        # A row's last token is first read by the row below, a step's last token by the next step.
        first = position + {2: 3, 5: 2}.get(position % 6, 1)
        assert (difference[first:] > 1e-6).all()
        assert position < 17 or not difference.any()


@torch.no_grad()
def test_the_actions_of_a_windows_first_step_are_ignored() -> None:
    model, codes, actions = random_model(), torch.randint(12, (1, 3, 2, 3)), random_actions(CONFIG, 1, 4)
    assert actions is not None
    later = actions[1:4]  # its first step has known actions, as in the middle of an episode
    unknown = GroupedActions(values=later.values, known=later.known.clone())
    unknown.known[:, 0] = False
    assert torch.equal(model(codes, later), model(codes, unknown))


def test_the_loss_scores_the_valid_steps_after_the_first() -> None:
    model, codes, actions = random_model(), tokens_for(CONFIG, 2, 4), random_actions(CONFIG, 2, 4)
    (logits,) = model.logits(codes, actions)
    expected = torch.nn.functional.cross_entropy(
        logits[:, 1:].flatten(0, 3), codes[:, 1:].flatten(), reduction="none"
    ).view(2, 3, 2, 3)
    scores = model.score(codes, actions)
    torch.testing.assert_close(scores.token_losses, expected, rtol=1e-4, atol=1e-5)
    assert scores.token_correct is not None
    assert torch.equal(scores.token_correct, logits[:, 1:].argmax(-1) == codes[:, 1:])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    losses = scores.token_losses
    torch.testing.assert_close(
        model.loss(codes, actions, valid), torch.cat([losses[0], losses[1, :1]]).mean(), rtol=1e-4, atol=1e-5
    )


def test_it_learns_a_world_that_follows_its_actions() -> None:
    """Each step is the one before plus its first action, which neither copying nor frequencies predict."""
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


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name: str) -> None:
    config = VARIANTS[name]
    model = random_model(config).train()
    model.loss(tokens_for(config, 8, 4), random_actions(config, 8, 4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", ["full", "factored", "masked", "masked factored"])
def test_an_untrained_model_predicts_a_uniform_distribution(name: str) -> None:
    config = VARIANTS[name]
    torch.manual_seed(0)
    scores = WorldModel(config).eval().score(tokens_for(config, 16, 4), random_actions(config, 16, 4))
    mean = (scores.token_losses * scores.weights).sum() / scores.weights.sum()
    assert mean.item() == pytest.approx(torch.tensor(12.0).log().item(), abs=0.1)


def test_corruption_and_action_dropout_apply_in_training_only() -> None:
    codes, actions = tokens_for(CONFIG, 8, 4), random_actions(CONFIG, 8, 4)
    for change in ({"corruption": 1.0}, {"action_dropout": 0.5}):
        model = random_model(replace(CONFIG, **change))  # type: ignore[arg-type]
        assert torch.equal(model.score(codes, actions).losses, model.score(codes, actions).losses)
        model.train()
        assert not torch.equal(model.score(codes, actions).losses, model.score(codes, actions).losses)


@pytest.mark.parametrize("config", [replace(CONFIG, corruption=0.5), replace(FLOW, corruption=0.5)])
def test_the_model_is_conditioned_on_the_fraction_of_replaced_tokens(config: WorldModelConfig) -> None:
    torch.manual_seed(0)
    model, tokens = random_model(config), tokens_for(config, 400, 4)
    corrupted, level = corrupt_tokens(tokens, 0.5, model.tokens.codebook_size)
    changed = (corrupted != tokens).flatten(4).any(-1) if tokens.ndim == 5 else corrupted != tokens
    chance = 1.0 if tokens.ndim == 5 else 11 / 12  # of drawing another code
    fraction = changed.float().flatten(1).mean(1)
    slope = (fraction * level).sum() / level.square().sum()
    assert slope.item() == pytest.approx(0.5 * chance, abs=0.03)
    actions = random_actions(config, 400, 4)
    assert not torch.allclose(model(tokens, actions, corruption=level), model(tokens, actions))
    torch.testing.assert_close(
        model(tokens, actions, corruption=torch.zeros(400)), model(tokens, actions), rtol=0, atol=0
    )


def record_inputs(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that will hold the tokens of each window that the model reads."""
    read: list[Tensor] = []
    whole = model.window_inputs
    monkeypatch.setattr(model, "window_inputs", lambda tokens, *rest: (read.append(tokens), whole(tokens, *rest))[1])
    return read


@pytest.mark.parametrize("config", [replace(CONFIG, own_draws=0.5), replace(FLOW, own_draws=0.5)])
def test_own_draws_replace_a_fraction_of_the_inputs_in_training_only(
    config: WorldModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, actions = random_model(config), tokens_for(config, 64, 4), random_actions(config, 64, 4)
    read = record_inputs(model, monkeypatch)
    model.score(tokens, actions)
    assert len(read) == 1
    read.clear()
    model.train().score(tokens, actions)
    true, mixed = read
    assert torch.equal(true, tokens)
    assert torch.equal(mixed[:, 0], tokens[:, 0])  # the first step has nothing to draw it from
    changed = (mixed != tokens).flatten(4).any(-1) if tokens.ndim == 5 else mixed != tokens
    assert 0.1 < changed[:, 1:].float().mean() < 0.3  # a quarter, less the draws that equal the truth


def test_own_draws_follow_the_distribution_given_the_true_tokens() -> None:
    """Their mean surprise is that distribution's entropy."""
    model, tokens, actions = random_model(), tokens_for(CONFIG, 200, 4), random_actions(CONFIG, 200, 4)
    with torch.no_grad():
        log_probabilities = model.logits(tokens, actions)[0][:, 1:].log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
    drawn = own_draws(model, tokens, actions)
    surprise, surprise_of_truth = (
        -log_probabilities.gather(-1, codes[:, 1:, ..., None]).mean() for codes in (drawn, tokens)
    )
    assert surprise.item() == pytest.approx(entropy.item(), abs=0.05)
    assert surprise_of_truth > surprise + 0.2


def test_with_own_draws_the_targets_stay_the_true_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, own_draws=1.0)
    model, tokens, actions = random_model(config).train(), tokens_for(config, 8, 4), random_actions(config, 8, 4)
    read = record_inputs(model, monkeypatch)
    losses = model.score(tokens, actions).losses
    mixed = read[1]
    logits = model.logits(mixed, actions)[0][:, 1:]
    expected = F.cross_entropy(logits.flatten(0, 3), tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected)


def test_own_draws_pass_no_gradient() -> None:
    model = random_model(FLOW).train()
    assert not own_draws(model, tokens_for(FLOW, 2, 4), random_actions(FLOW, 2, 4)).requires_grad


def test_actions_are_dropped_by_windows_and_by_steps() -> None:
    torch.manual_seed(0)
    actions = random_actions(CONFIG, 2000, 9)
    assert actions is not None
    actions = drop_actions(actions, 0.2)
    kept = actions.known[:, 1:].all(-1)
    assert (~kept.any(1)).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert kept[kept.any(1)].float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_weights_of_a_masked_models_losses_estimate_the_mean_over_all_tokens() -> None:
    """They average 1 over each step, whatever its number of masked tokens, which is uniform."""
    known, weights = random_known((3000, 2, 2, 3), torch.device("cpu"), seeded=True)
    assert not (weights[known] != 0).any()
    torch.testing.assert_close(weights.mean((2, 3)), torch.ones(3000, 2))
    counts = known.sum((2, 3)).flatten()
    assert torch.bincount(counts, minlength=6).float().div(6000).sub(1 / 6).abs().max() < 0.03
    again, _ = random_known((3000, 2, 2, 3), torch.device("cpu"), seeded=True)
    assert torch.equal(again, known)


def test_a_step_cannot_begin_in_the_middle_of_another() -> None:
    model = random_model(VARIANTS["no actions"])
    nothing = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="got 1 tokens in the cache, 6 per step"):
        model.step_context(nothing, None, model.init_cache(1).advanced(1))
    with pytest.raises(ValueError, match="got 0 tokens in the cache.*and a previous step"):
        model.step_context(nothing, None, model.init_cache(1))


@torch.no_grad()
def test_a_step_context_belongs_to_one_cache() -> None:
    """Keys were written into the buffers of one fork and read from those of the other."""
    model, tokens, actions = random_model(CONFIG), tokens_for(CONFIG, 2, 3), random_actions(CONFIG, 2, 4)
    assert actions is not None
    cache = model.prefill(tokens, actions[:3], model.init_cache(2))
    context = model.step_context(tokens[:, -1], of_step(actions, 3), cache)
    group = raster_groups(2, 3, model.device)[0]
    blank = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="blocks must be the decode_blocks of the cache that is given"):
        causal(model).step(blank, group, context, cache.fork(1))
    with pytest.raises(ValueError, match="a row for each of the cache's 1, got 2"):
        model.prefill(tokens, actions[:3], model.init_cache(1))


@torch.no_grad()
def test_since_leaves_out_the_steps_before_it() -> None:
    model, tokens, actions = random_model(CONFIG), tokens_for(CONFIG, 2, 4), random_actions(CONFIG, 2, 4)
    whole, window = model(tokens, actions), model.window_inputs(tokens, actions)
    for since in range(5):
        torch.testing.assert_close(causal(model).hidden(window, since=since), whole[:, since:])
    with pytest.raises(ValueError, match="since must be 0 to 4, the window's steps, got 5"):
        causal(model).hidden(window, since=5)


@torch.no_grad()
def test_a_masked_model_has_no_order_and_predicts_nothing_of_a_single_step() -> None:
    model = random_model(MASKED["masked"])
    tokens, actions = tokens_for(model.config, 2, 3), random_actions(model.config, 2, 3)
    with pytest.raises(ValueError, match="diagonal_offset is for causal models"):
        model.score(tokens, actions, diagonal_offset=1)
    assert actions is not None and model(tokens[:, :1], actions[:1]).shape[:2] == (2, 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_model_loads_as_it_was(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model = random_model(config)
    model.token_hash = "abc"
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert again.config == config and again.token_hash == "abc"
    tokens, actions = tokens_for(config, 1, 3), random_actions(config, 1, 3)
    assert torch.equal(again.score(tokens, actions).losses, model.score(tokens, actions).losses)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "a")
    random_model(VARIANTS["free embeddings"]).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="the weights in .*b are those of another architecture: "):
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
        ({"max_steps": 0}, "max_steps must be 1 to 65536, got 0"),
        ({"previous_neighbourhood": 2}, "previous_neighbourhood must be odd and positive, got 2"),
        ({"copy_neighbourhood": 2}, "copy_neighbourhood must be odd, or 0 for none, got 2"),
        ({"prediction": "diffusion"}, "prediction must be 'causal' or 'masked', got 'diffusion'"),
        ({"tokens": TOKENS, "flow": FlowConfig()}, "flow is for continuous tokens; leave it out"),
        ({"tokens": PATCHES, "vocabulary": "flat"}, "vocabulary and copy_neighbourhood are for codes"),
        ({"tokens": replace(TOKENS, fsq_levels=None), "vocabulary": "factored"}, "needs the tokens' fsq_levels"),
        ({"tokens": replace(TOKENS, actions=ActionSpec()), "action_dropout": 0.1}, "action_dropout is for tokens with"),
        ({"corruption": 1.5}, r"corruption must be in \[0, 1\], got 1.5"),
        ({"own_draws": -0.1}, r"own_draws must be in \[0, 1\], got -0.1"),
        ({"own_draws": 0.5, "prediction": "masked"}, "own_draws is for causal models, got 0.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig(**settings)


def test_tokens_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(b, T, 2, 3\), got torch.int64 of \(1, 2, 3, 3\)"):
        random_model()(torch.zeros(1, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at most 4 latent steps \(max_steps\), got 5"):
        random_model(VARIANTS["masked"])(torch.zeros(1, 5, 2, 3, dtype=torch.int64))
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
    # code = d0 + 4 d1. Free vectors start at zero: differences along one digit don't depend on the other.
    torch.testing.assert_close(table[1] - table[0], table[9] - table[8])


def test_a_local_window_has_the_codes_around_each_position() -> None:
    neighbor_codes = local_window(torch.arange(12).view(1, 3, 4), 3)
    assert neighbor_codes.shape == (1, 3, 4, 9)
    assert neighbor_codes[0, 1, 1].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert neighbor_codes[0, 0, 3].tolist() == [-1, -1, -1, 2, 3, -1, 6, 7, -1]
    assert torch.equal(local_window(torch.arange(12).view(3, 4), 1)[..., 0], torch.arange(12).view(3, 4))


@pytest.mark.parametrize("diagonal_offset", [None, 1])
def test_in_windows_longer_than_the_context_each_step_sees_the_newest_before_it(diagonal_offset: int | None) -> None:
    """With one layer a step depends on the steps it sees, and on the one before each, which conditions it."""
    config = replace(CONFIG, transformer=replace(CONFIG.transformer, depth=1))
    model, codes, actions = random_model(config), tokens_for(config, 2, 9), random_actions(config, 2, 9)
    assert actions is not None and config.max_steps == 4
    changed = torch.cat([(codes[:, :1] + 1) % 12, codes[:, 1:]], dim=1)
    one, other = (model.score(x, actions, diagonal_offset=diagonal_offset).token_losses for x in (codes, changed))
    differs = (one != other).flatten(2).any(2).all(0)  # of steps 1 .. 8
    assert differs.tolist() == [True, True, True, True, False, False, False, False]
    model.train().loss(codes, actions).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
