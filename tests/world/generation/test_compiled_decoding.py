"""Compiled calls draw every position as the uncompiled code does, in every order, and nothing in them waits for the
device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from world_models import CONFIG, VARIANTS, of_step, random_actions, random_model, random_tokens

from world_model.architecture import OutcomeConfig, WorldModelConfig
from world_model.decoding import Context, Decoding
from world_model.generation.compiled import (
    CompiledGroupDrawing,
    CompiledMaskedDrawing,
    as_inputs,
    compiled_call,
)
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler

ONE_BLOCK = replace(CONFIG.transformer, depth=1)  # compiling takes as long as there are blocks
DROPS_ACTIONS: dict[str, Any] = {"transformer": ONE_BLOCK, "action_dropout": 0.1}
DIAGONAL = Decoding(order="diagonal")
MASKED = Decoding(order="masked", steps=3)


@dataclass(frozen=True)
class Case:
    """A model, and how it draws."""

    config: WorldModelConfig
    sampler: Sampler
    decoding: Decoding


def case(variant: str, sampler: Sampler, decoding: Decoding) -> Case:
    return Case(replace(VARIANTS[variant], **DROPS_ACTIONS), sampler, decoding)


CASES = {
    "full": case("full", Sampler(seed=3), Decoding()),
    "factored": case("factored", Sampler(seed=3, temperature=0.8, top_k=3, top_p=0.9), Decoding()),
    "patches": case("patches", Sampler(seed=3), Decoding()),
    "guided": case("full", Sampler(seed=3, guidance=2.0), Decoding()),
    "diagonal": case("full", Sampler(seed=3), DIAGONAL),
    "diagonal, guided": case("factored", Sampler(seed=3, guidance=2.0, top_k=3), DIAGONAL),
    "diagonal patches": case("patches", Sampler(seed=3), replace(DIAGONAL, diagonal_offset=2)),
    "masked": case("masked", Sampler(seed=3), MASKED),
    "masked, guided": case("masked factored", Sampler(seed=3, guidance=2.0, top_p=0.9), MASKED),
    "masked patches": case("masked patches", Sampler(seed=3), MASKED),
}
ORDERS = ["full", "diagonal", "masked"]  # a case of each
QUICK = ["full", "patches", "diagonal, guided", "masked"]  # the rest is slow


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def by_speed(names: Iterable[str]) -> list[Any]:
    return [name if name in QUICK else slow(name) for name in names]


def use_backend(generator: StepGenerator, backend: Any) -> StepGenerator:
    """Let a generator whose drawing is compiled compile by another backend."""
    drawing = generator.drawing
    assert isinstance(drawing, CompiledGroupDrawing | CompiledMaskedDrawing)
    if isinstance(drawing, CompiledGroupDrawing):
        drawing._draw_group = compiled_call(drawing._drawn_group, generator.model.device, backend)
    else:
        drawing._predict = compiled_call(drawing._drawn_masked, generator.model.device, backend)
    return generator


def begin(
    config: WorldModelConfig,
    sampler: Sampler,
    decoding: Decoding,
    backend: Any = None,
    *,
    steps: int = 2,
    past_steps: list[int] | None = None,
) -> StepGenerator:
    """A generator after a past of two rows, compiled if a backend is given."""
    actions = random_actions(config, 2, 12)
    decoding = replace(decoding, compiled=backend is not None)
    past = None if actions is None else actions[:steps]
    tokens, model = random_tokens(config, 2, steps), random_model(config)
    generator = StepGenerator(model, tokens, past, sampler, decoding=decoding, past_steps=past_steps)
    return generator if backend is None else use_backend(generator, backend)


def check_equal(name: str, backend: str, **changes: Any) -> None:
    """Compiled drawing gives the tokens, entropies and rewards of the uncompiled, over full contexts, and of forks."""
    one = CASES[name]
    config = replace(one.config, outcomes=OutcomeConfig(), **changes)
    plain, compiled = (begin(config, one.sampler, one.decoding, given) for given in (None, backend))
    actions = random_actions(config, 2, 12)
    for step in range(2, 6):
        known = of_step(actions, step)
        expected, drawn = (generator.step(known, entropy=True) for generator in (plain, compiled))
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
        assert plain.outcomes is not None and compiled.outcomes is not None
        torch.testing.assert_close(compiled.outcomes.rewards, plain.outcomes.rewards, rtol=1e-3, atol=1e-4)
        assert (plain.entropy is None) == (compiled.entropy is None)
        if plain.entropy is not None:
            torch.testing.assert_close(compiled.entropy, plain.entropy, rtol=1e-3, atol=1e-4)
    assert compiled.model_calls == plain.model_calls


@pytest.mark.parametrize("name", by_speed(CASES))
def test_compiled_drawing_equals_uncompiled_drawing(name: str) -> None:
    check_equal(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(temperature=0),
        Sampler(seed=5, temperature=0.3),
        Sampler(seed=5, temperature=2.0),
        Sampler(seed=5, top_k=1),
        Sampler(seed=5, top_k=4),
        Sampler(seed=5, top_p=0.5),
        Sampler(seed=5, temperature=0.7, top_k=5, top_p=0.8),
    ],
    ids=str,
)
def test_the_compiled_call_draws_what_the_sampler_says(name: str, sampler: Sampler) -> None:
    """By the same random numbers, which are given to it."""
    one = CASES[name]
    plain, compiled = (begin(one.config, sampler, one.decoding, given) for given in (None, "eager"))
    actions = random_actions(one.config, 2, 12)
    for step in range(2, 5):
        assert torch.equal(compiled.step(of_step(actions, step)), plain.step(of_step(actions, step)))


@pytest.mark.parametrize("name", by_speed(["factored", "diagonal, guided", "masked, guided"]))
@pytest.mark.parametrize("context", ["exact", slow("rolling")])
def test_compiled_drawing_of_rows_of_different_ages(name: str, context: Context) -> None:
    one = CASES[name]
    config, decoding = replace(one.config, max_steps=5), replace(one.decoding, context=context)
    actions = random_actions(config, 2, 12)
    plain, compiled = (
        begin(config, one.sampler, decoding, backend, steps=3, past_steps=[1, 3]) for backend in (None, "eager")
    )
    for step in range(3, 9):
        assert torch.equal(compiled.step(of_step(actions, step)), plain.step(of_step(actions, step)))


@pytest.mark.parametrize(("name", "calls"), [("full", 6), slow("diagonal", 4), slow("masked", 4)])
def test_it_is_compiled_once_for_all_positions_steps_and_windows(name: str, calls: int) -> None:
    counter, one = CompileCounter(), CASES[name]
    generator = begin(one.config, one.sampler, one.decoding, counter)
    actions = random_actions(one.config, 2, 12)
    for step in range(2, 10):
        generator.step(of_step(actions, step))
    assert counter.frame_count == 1
    assert generator.model_calls > 8 * calls  # those of each step, and re-prefills


def test_forks_of_pasts_of_many_lengths_are_compiled_a_few_times() -> None:
    """Each length was recompiled, and the ninth hit PyTorch's limit, which is an error."""
    counter = CompileCounter()
    tokens = replace(CONFIG.tokens, height=1, width=2)  # type: ignore[type-var]
    config = replace(CONFIG, tokens=tokens, max_steps=7, transformer=ONE_BLOCK)
    model, actions = random_model(config), random_actions(config, 1, 9)
    assert actions is not None
    plain = StepGenerator(model, random_tokens(config, 1, 2), actions[:2], Sampler(seed=3))
    compiled = StepGenerator(
        model, random_tokens(config, 1, 2), actions[:2], Sampler(seed=3), decoding=Decoding(compiled=True)
    )
    use_backend(compiled, counter)
    for step in range(2, 9):
        futures = actions[step : step + 1].repeated(2)
        assert torch.equal(compiled.fork(2).step(futures), plain.fork(2).step(futures))
        one = actions[step : step + 1]
        assert torch.equal(compiled.step(one), plain.step(one))
    assert counter.frame_count <= 4  # rollouts and forks, and no more for the buffers of later windows


@torch._dynamo.config.patch(recompile_limit=1)
def test_the_limit_of_recompilation_is_raised() -> None:
    """A ninth batch size, or temperature, hit PyTorch's limit, which is an error."""
    tokens = replace(CONFIG.tokens, height=1, width=1)  # type: ignore[type-var]
    config = replace(CONFIG, tokens=tokens, transformer=ONE_BLOCK)
    model = random_model(config)
    drawing = use_backend(begin(config, Sampler(), Decoding(compiled=True), "eager"), "eager").drawing
    for batch in (1, 2, 3):
        actions = random_actions(config, batch, 3)
        assert actions is not None
        generator = StepGenerator(model, random_tokens(config, batch, 2), actions[:2], Sampler())
        generator.drawing = drawing
        assert len(generator.step(actions[2:])) == batch


@pytest.mark.parametrize("name", by_speed(CASES))
def test_nothing_in_the_loop_waits_for_the_device(name: str) -> None:
    """Fake tensors have no values: reading one fails."""
    one = CASES[name]
    generator = begin(one.config, one.sampler, one.decoding, "eager")
    drawing, model, actions = generator.drawing, generator.model, random_actions(one.config, 2, 12)
    with torch.no_grad():
        context = generator.window.next_step(of_step(actions, 2), None)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            current = mode.from_tensor(random_tokens(one.config, 2, 1).flatten(1, 3))
            known = mode.from_tensor(torch.zeros(2, 6, dtype=torch.bool))
            inputs = as_inputs(context, generator.window.cache)
            if isinstance(drawing, CompiledMaskedDrawing):
                noise = mode.from_tensor(torch.rand(2, 3, 6, model.head.noise_per_token + 1))
                drawing._drawn_masked(current, known, None, torch.tensor([1]), *inputs, noise)
            else:
                assert isinstance(drawing, CompiledGroupDrawing)
                noise = mode.from_tensor(torch.rand(2, 6, model.head.noise_per_token))
                for positions, sees in zip(drawing.positions, drawing.sees, strict=True):
                    drawing._drawn_group(current, positions, sees, *inputs, noise, False)
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):  # the check can fail
        current.sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inductor_equals_uncompiled_drawing(name: str) -> None:
    check_equal(name, "inductor")


def test_graphs_are_captured_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, mode, **_: modes.append(mode))
    for device, backend in (("cpu", "inductor"), ("cuda", "inductor"), ("cuda", "eager")):
        compiled_call(lambda: None, torch.device(device), backend)
    assert modes == [None, "reduce-overhead", None]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ORDERS)
def test_on_cuda_compiled_drawing_equals_uncompiled_without_waiting(name: str) -> None:
    one = CASES[name]
    tokens, actions = random_tokens(one.config, 2, 2).to("cuda"), random_actions(one.config, 2, 12)
    assert actions is not None
    actions = actions.to("cuda")
    rolls = []
    for compiled in (False, True):
        model = random_model(one.config).to("cuda")
        decoding = replace(one.decoding, compiled=compiled)
        generator = StepGenerator(model, tokens, actions[:2], one.sampler, decoding=decoding)
        rolls.append(torch.stack([generator.step(actions[step : step + 1]) for step in range(2, 8)]))
        torch.cuda.set_sync_debug_mode("error")
        try:
            generator.step(actions[8:9])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*rolls)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
