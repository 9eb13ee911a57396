"""A world model reads the states of past frames and predicts those of the next step, if it is built to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from world_models import CONFIG, VARIANTS, of_step, random_actions, random_model, random_tokens, rows

from vidtok_plugin.store.encode import group_state
from world_model import Decoding, Sampler, StepGenerator, WorldModel, WorldModelConfig
from world_model.actions import GroupedActions, group_actions
from world_model.architecture import StateConfig

STATE = StateConfig(size=3, width=16, dropout=0.0)
NAN = float("nan")
KINDS = ["full", "factored", "patches", "no actions", "masked", "masked patches"]


def with_state(config: WorldModelConfig) -> WorldModelConfig:
    return replace(config, state=STATE)


def state_model(config: WorldModelConfig, seed: int = 0) -> WorldModel:
    """A random model whose states have means of 5 and deviations of 1e-3 to 100."""
    model = random_model(with_state(config), seed)
    assert model.state_normalization is not None
    model.state_normalization.set_statistics(torch.full((3,), 5.0), torch.tensor([0.01, 1.0, 100.0]))
    return model


def random_state(batch: int, steps: int, seed: int = 0) -> Tensor:
    """States (b, T, 2, 3) of windows that begin with their episode."""
    noise = torch.randn(batch, 2 * steps - 1, 3, generator=torch.Generator().manual_seed(seed))
    return group_state(5 + noise * torch.tensor([0.01, 1.0, 100.0]), 2)


def hidden_of(model: WorldModel, tokens: Tensor, actions: object, state: Tensor | None) -> Tensor:
    """Hidden states of steps 1 .. T-1; none of their own tokens are known to a masked model."""
    return model(tokens, actions, None, state)[:, -(tokens.shape[1] - 1) :]


@pytest.mark.parametrize("name", KINDS)
def test_no_step_sees_its_own_state_or_a_later_one(name: str) -> None:
    """The state of step t reaches the tokens of step t+1, and neither the tokens nor the predicted state of step t."""
    model = state_model(VARIANTS[name])
    tokens, actions, state = random_tokens(model.config, 2, 4), random_actions(model.config, 2, 4), random_state(2, 4)
    hidden, predicted = hidden_of(model, tokens, actions, state), model.window_states(tokens, actions, state)
    scores = model.score(tokens, actions, state=state)
    for step in range(4):
        changed = state.clone()
        changed[:, step] += torch.tensor([0.01, 1.0, 100.0])
        again = hidden_of(model, tokens, actions, changed)
        assert torch.equal(again[:, :step], hidden[:, :step])  # the steps 1 .. step
        torch.testing.assert_close(model.window_states(tokens, actions, changed)[:, :step], predicted[:, :step])
        losses = model.score(tokens, actions, state=changed).token_losses
        if name != "patches" and name != "masked patches":  # these losses are of random noise levels
            torch.testing.assert_close(losses[:, :step], scores.token_losses[:, :step])
        if step < 3:
            assert not torch.allclose(again[:, step], hidden[:, step], atol=1e-3)
            assert not torch.allclose(model.window_states(tokens, actions, changed)[:, step], predicted[:, step])


def test_of_a_first_step_only_the_last_frame_counts() -> None:
    """A window within an episode is read as a prompt that begins there."""
    model = state_model(CONFIG)
    tokens, actions, state = random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3), random_state(2, 3)
    whole = model(tokens, actions, None, state)
    within = state.clone()
    within[:, 0, 0] = 1.0
    assert torch.equal(model(tokens, actions, None, within), whole)
    within[:, 0, 1] = 1.0
    assert not torch.allclose(model(tokens, actions, None, within), whole)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["full", "patches", "no actions"])
def test_states_of_drawn_steps_are_those_of_the_whole_window(name: str, guidance: float) -> None:
    """With the cache, and with predicted states as the past of the next steps."""
    config = VARIANTS[name]
    if guidance > 1:
        if name != "full":
            pytest.skip("no guidance")
        config = replace(config, action_dropout=0.1)
    model = state_model(config)
    past, actions, state = random_tokens(config, 2, 2), random_actions(config, 2, 4), random_state(2, 2)
    generator = StepGenerator(model, past, actions and actions[:2], Sampler(guidance=guidance), state=state)
    drawn, states = [past], [state]
    for step in range(2, 4):
        drawn.append(generator.step(of_step(actions, step))[:, None])
        assert generator.state is not None
        states.append(generator.state[:, None])
    whole = model.window_states(torch.cat(drawn, dim=1), actions, torch.cat(states, dim=1))
    torch.testing.assert_close(torch.cat(states[1:], dim=1), whole[:, 1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("full", Decoding(context_shift=1)),
        ("full", Decoding(order="diagonal", diagonal_offset=3)),
        ("masked", Decoding(order="masked", context_shift=2, choice_temperature=0.0)),
        pytest.param("full", Decoding(compiled=True), marks=pytest.mark.slow),
    ],
)
def test_every_step_equals_that_of_a_new_generator(name: str, decoding: Decoding) -> None:
    """The cache changes nothing, also after context shifts and in rows of different lengths."""
    model = state_model(VARIANTS[name])
    actions, state = random_actions(CONFIG, 2, 8), random_state(2, 2)
    tokens = random_tokens(CONFIG, 2, 2)
    assert actions is not None

    def starting_with(
        row: slice, steps: slice, decoding: Decoding, past_steps: list[int] | None = None
    ) -> StepGenerator:
        past, states, taken = tokens[row, steps], state[row, steps], rows(actions, row)
        assert taken is not None
        return StepGenerator(
            *(model, past, taken[steps], Sampler(temperature=0)), decoding=decoding, past_steps=past_steps, state=states
        )

    held = [1, 2]
    generator = starting_with(slice(0, 2), slice(0, 2), decoding, held)
    for step in range(2, 7):
        alone = []
        for row in range(2):
            one = slice(row, row + 1)
            new = starting_with(one, slice(step - held[row], step), replace(decoding, compiled=False))
            new.step(of_step(rows(actions, one), step))
            assert new.state is not None
            alone.append(new.state)
        drawn = generator.step(of_step(actions, step))
        assert generator.state is not None
        torch.testing.assert_close(generator.state, torch.cat(alone), rtol=1e-3, atol=1e-3)
        tokens, state = torch.cat([tokens, drawn[:, None]], 1), torch.cat([state, generator.state[:, None]], 1)
        kept = 4 - decoding.context_shift_for(4)
        held = [kept + 1 if count == 4 else count + 1 for count in held]


def test_forks_and_reset_rows_have_states_of_their_own() -> None:
    model = state_model(CONFIG)
    tokens, actions, state = random_tokens(CONFIG, 2, 2), random_actions(CONFIG, 2, 3), random_state(2, 2)
    assert actions is not None
    generator = StepGenerator(model, tokens, actions[:2], Sampler(temperature=0), state=state)
    fork = generator.fork(2)
    generator.step(actions[2:])
    fork.step(actions[2:].repeated(2))
    assert generator.state is not None and fork.state is not None
    torch.testing.assert_close(fork.state, generator.state.repeat_interleave(2, 0), rtol=1e-3, atol=1e-3)
    first = generator.state
    generator.reset_rows([1], tokens[1:], actions.rows(torch.tensor([1]))[:2], [1], state=state[1:])
    generator.step(actions[2:])
    torch.testing.assert_close(generator.state[1], first[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(generator.state[0], first[0], atol=1e-3)


def test_unknown_states_of_a_past_are_left_out() -> None:
    model = state_model(CONFIG)
    tokens, actions = random_tokens(CONFIG, 1, 2), random_actions(CONFIG, 1, 3)
    assert actions is not None
    found = []
    for state in (None, torch.full((1, 2, 2, 3), NAN), random_state(1, 2)):
        generator = StepGenerator(model, tokens, actions[:2], Sampler(temperature=0), state=state)
        generator.step(actions[2:])
        assert generator.state is not None and generator.state.isfinite().all()
        found.append(generator.state)
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_a_new_head_copies_the_newest_state() -> None:
    model = WorldModel(with_state(CONFIG)).eval()
    state = random_state(2, 3)
    predicted = model.window_states(random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3), state)
    torch.testing.assert_close(predicted, state[:, :2, -1:].expand(-1, -1, 2, -1))
    tokens, actions = random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3)
    plain = WorldModel(CONFIG).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(model(tokens, actions, None, state), plain(tokens, actions))  # ignored at first


def test_unknown_states_do_not_count() -> None:
    model = state_model(CONFIG)
    tokens, actions, state = random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3), random_state(2, 3)

    def loss(valid: Tensor | None = None) -> float:
        found = model.losses(tokens, actions, valid, None, state).state
        assert found is not None
        return found.item()

    real = model.state_normalization(state[:, 1:])  # type: ignore[misc]
    predicted = model.state_normalization(model.window_states(tokens, actions, state))  # type: ignore[misc]
    assert loss() == pytest.approx((real - predicted).square().mean().item(), rel=1e-4)
    first = (real - predicted)[0].square().mean().item()
    assert loss(torch.tensor([[True] * 3, [True, False, False]])) == pytest.approx(first, rel=1e-4)
    state[1] = NAN
    assert loss() == pytest.approx(first / 2, rel=1e-4)
    state[:] = NAN
    assert loss() == 0
    assert model.losses(tokens, actions).state is None


@pytest.mark.slow
def test_states_of_any_unit_are_learned() -> None:
    """Each frame adds its action to the state, in units of 0.01, 1 and 100."""
    torch.manual_seed(0)
    config = replace(with_state(CONFIG), transformer=replace(CONFIG.transformer, width=32))
    model = WorldModel(config).train()
    units = torch.tensor([0.01, 1.0, 100.0])
    assert model.state_normalization is not None
    model.state_normalization.set_statistics(5 * units, 5 * units)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def window() -> tuple[Tensor, GroupedActions, Tensor]:
        taken = torch.randint(5, (32, 5))
        state = taken.cumsum(1)[..., None] * units
        return torch.randint(12, (32, 3, 2, 3)), group_actions(taken, 2), group_state(state, 2)

    for _ in range(80):
        tokens, actions, state = window()
        losses = model.losses(tokens, actions, None, None, state)
        assert losses.state is not None
        optimizer.zero_grad()
        losses.state.backward()
        optimizer.step()
    tokens, actions, state = window()
    predicted = model.eval().window_states(tokens, actions, state)
    error = ((predicted - state[:, 1:]) / units).square().mean((0, 1, 2))
    copied = ((state[:, :-1, -1:] - state[:, 1:]) / units).square().mean((0, 1, 2))
    assert (error < 0.1 * copied).all(), (error, copied)


def test_saved_models_keep_their_statistics(tmp_path: Path) -> None:
    model = state_model(CONFIG)
    model.save_pretrained(tmp_path)
    tokens, actions, state = random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3), random_state(2, 3)
    again = WorldModel.from_pretrained(tmp_path)
    assert torch.equal(again.window_states(tokens, actions, state), model.window_states(tokens, actions, state))


def test_states_that_do_not_fit_are_refused() -> None:
    tokens, actions = random_tokens(CONFIG, 1, 2), random_actions(CONFIG, 1, 2)
    model = state_model(CONFIG)
    with pytest.raises(ValueError, match=r"state must be floats of shape \(1, 2, 2, 3\).*, got .*\(1, 2, 2, 4\)"):
        model.window_states(tokens, actions, torch.zeros(1, 2, 2, 4))
    state = random_state(1, 2)
    state[0, 1, 1, 0] = float("inf")
    with pytest.raises(ValueError, match=r"state must be finite in float32, .* got inf at position \(0, 1, 1, 0\)"):
        StepGenerator(model, tokens, actions, Sampler(), state=state)
    with pytest.raises(ValueError, match="built without states"):
        random_model(CONFIG).window_states(tokens, actions)
    with pytest.raises(ValueError, match="built without states"):
        random_model(CONFIG)(tokens, actions, None, random_state(1, 2))
    with pytest.raises(ValueError, match="state.size must be set"):
        WorldModel(replace(CONFIG, state=StateConfig()))
