"""Rollouts from odd codes, actions, weights and samplers: refused by name, or never outside the codebook."""

import itertools
from dataclasses import replace

import pytest
import torch
from world_models import CONFIG, FLOW, MASKED, VARIANTS, of_step, random_actions, random_model, random_tokens

from world_model.decoding import Decoding
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.inputs import token_checks

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64, torch.int64)


@pytest.mark.parametrize("kind", ["full", "factored", "masked factored"])
@pytest.mark.parametrize("code", [-1, 12, 2**31, 2**62])
def test_past_codes_outside_the_codebook_are_named(kind: str, code: int) -> None:
    """A factored model drew from -1 and 2^31 without a word."""
    config = {**VARIANTS, **MASKED}[kind]
    model, actions = random_model(config), random_actions(config, 2, 3)
    past = random_tokens(config, 2, 3)
    past[1, 2, 0, 1] = code
    message = rf"^WorldModel: codes must be 0 to 11, got {code} at position \(1, 2, 0, 1\)"
    for call in (
        lambda: StepGenerator(model, past, actions, Sampler()),
        lambda: model.logits(past, actions),
        lambda: model.score(past, actions),
        lambda: model.prefill(past, actions, model.init_cache(2)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", ["full", "masked"])
def test_a_past_is_checked_once_and_drawn_codes_never(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check waits for the device."""
    checked = []
    monkeypatch.setattr(token_checks, "check_range", lambda codes, *_, **__: checked.append(codes.shape[1]))
    config = {**VARIANTS, **MASKED}[kind]
    model, actions = random_model(config), random_actions(config, 1, 9)
    generator = StepGenerator(model, random_tokens(config, 1, 2), actions[:2], Sampler())
    for step in range(2, 9):
        generator.step(of_step(actions, step))
    assert checked == [2]
    assert generator.window.prefills > 1  # later windows were prefilled, too


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_past_patches_that_are_not_finite_are_named(value: float) -> None:
    past = random_tokens(FLOW, 2, 3)
    past[1, 0, 1, 2, 1] = value
    with pytest.raises(
        ValueError, match=rf"^WorldModel: patches must be finite, got {value} at position \(1, 0, 1, 2, 1\)"
    ):
        StepGenerator(random_model(FLOW), past, random_actions(FLOW, 2, 3), Sampler())


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_codes_of_any_integer_type_give_the_same_steps(dtype: torch.dtype) -> None:
    model, actions = random_model(CONFIG), random_actions(CONFIG, 2, 8)
    past = random_tokens(CONFIG, 2, 2)
    steps = [
        StepGenerator(model, codes, actions[:2], Sampler(seed=1)).step(of_step(actions, 2))
        for codes in (past, past.to(dtype))
    ]
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(model.logits(past, actions[:2])[0], model.logits(past.to(dtype), actions[:2])[0])


@pytest.mark.parametrize(
    "past",
    [torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 2, 3).long().numpy(), [[0]]],
    ids=["float", "bool", "numpy", "list"],
)
def test_codes_of_other_types_are_named(past: object) -> None:
    with pytest.raises(ValueError, match="^WorldModel: codes must be (integers|a torch.Tensor)"):
        StepGenerator(random_model(CONFIG), past, random_actions(CONFIG, 1, 2), Sampler())  # type: ignore[arg-type]


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 rollout and 1 latent step, got 0 and 2"):
        StepGenerator(random_model(CONFIG), random_tokens(CONFIG, 0, 2), random_actions(CONFIG, 0, 2), Sampler())


@pytest.mark.parametrize("kind", ["full", "patches", "masked"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_before_a_token_is_drawn(kind: str, value: float) -> None:
    """With NaN, every code drawn was 0."""
    config = {**VARIANTS, **MASKED}[kind]
    model = random_model(config)
    model.step_inputs.place.data[1, 2] = value
    with pytest.raises(
        ValueError, match=rf"^WorldModel: the weights must be finite, got {value} at \(1, 2\) of step_inputs.pl"
    ):
        StepGenerator(model, random_tokens(config, 1, 2), random_actions(config, 1, 2), Sampler())


EXTREMES = [
    {"temperature": temperature, "top_p": top_p, "top_k": top_k, "guidance": guidance}
    for temperature, top_p, top_k, guidance in itertools.product(
        (1e-300, 1e-38, 1.0, 1e38), (None, 1e-300, 1.0), (None, 1), (0.0, 1e38, 1e300)
    )
]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e38])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_no_sampler_draws_outside_the_vocabulary(scale: float, dtype: torch.dtype) -> None:
    """A temperature of 1e-38 and a top_p of 1e-300 gave NaN probabilities, and a guidance of 1e38 infinite logits."""
    rows = (
        (torch.randn(8, 7, dtype=torch.float64) * scale)
        .clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        .to(dtype)
    )
    rows[4:, :3] = rows[:4, :3]  # equal with and without actions
    uniforms = torch.tensor([0.0, 0.3, 0.999, 1.0])
    for settings in EXTREMES:
        sampler = Sampler(**settings)
        logits = sampler.guide(rows)
        assert logits.isfinite().all(), settings
        p = sampler.probabilities(logits)
        assert ((p.sum(-1) - 1).abs() < 1e-3).all(), settings
        drawn = sampler.draw(logits, uniforms)
        assert ((drawn >= 0) & (drawn < 7)).all(), settings
        assert (p.gather(-1, drawn[:, None]) > 0).all(), settings


@pytest.mark.parametrize("settings", [{"temperature": 1e-38}, {"top_p": 1e-300}])
def test_the_smallest_settings_take_the_likeliest_token(settings: dict[str, float]) -> None:
    logits = torch.randn(64, 9)
    assert torch.equal(Sampler(**settings).draw(logits, torch.rand(64)), logits.argmax(-1))


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(order="diagonal")])
def test_a_rollout_with_extreme_settings_stays_in_the_codebook(decoding: Decoding) -> None:
    config = replace(VARIANTS["factored"], action_dropout=0.1)
    actions = random_actions(config, 2, 8)
    sampler = Sampler(temperature=1e-38, top_p=1e-300, guidance=1e38)
    generator = StepGenerator(
        random_model(config), random_tokens(config, 2, 2), actions[:2], sampler, decoding=decoding
    )
    for step in range(2, 6):
        drawn = generator.step(of_step(actions, step))
        assert drawn.min() >= 0 and drawn.max() < 12
