"""One compiled call draws every position as the uncompiled code does, and nothing in it waits for the device."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from world_models import CONFIG, VARIANTS, of_step, random_actions, random_model, random_tokens

from world_model.decoding import Decoding
from world_model.generation.compiled import CompiledDrawing
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.causal import CausalPrediction

SAMPLERS = {
    "full": Sampler(seed=3),
    "factored": Sampler(seed=3, temperature=0.8, top_k=3, top_p=0.9),
    "patches": Sampler(seed=3),
    "guided": Sampler(seed=3, guidance=2.0),
}
ONE_BLOCK = replace(CONFIG.transformer, depth=1)  # compiling takes as long as there are blocks
CONFIGS = {name: replace(VARIANTS[name], transformer=ONE_BLOCK) for name in ("full", "factored", "patches")}
CONFIGS["guided"] = replace(CONFIGS["full"], action_dropout=0.1)


def compiled_drawing(model: WorldModel, sampler: Sampler, backend: Any) -> CompiledDrawing:
    assert isinstance(model.prediction, CausalPrediction)
    return CompiledDrawing(model, model.prediction, sampler, backend=backend)


def drawn(name: str, steps: int, backend: str | None, batch: int = 2) -> tuple[torch.Tensor, StepGenerator]:
    """Steps drawn after a past of two, compiled if a backend is given."""
    config, sampler = CONFIGS[name], SAMPLERS[name]
    model, tokens, actions = random_model(config), random_tokens(config, batch, 2), random_actions(config, batch, 12)
    generator = StepGenerator(model, tokens, None if actions is None else actions[:2], sampler)
    if backend is not None:
        generator.drawing = compiled_drawing(model, sampler, backend)
    return torch.stack([generator.step(of_step(actions, 2 + i)) for i in range(steps)], dim=1), generator


@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_drawing_equals_uncompiled_drawing(name: str) -> None:
    expected, _ = drawn(name, 3, None)
    given, _ = drawn(name, 3, "eager")
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_compiled_drawing_of_rows_of_different_ages() -> None:
    config = replace(CONFIGS["full"], max_steps=5)
    actions = random_actions(config, 2, 12)
    assert actions is not None
    rolls = []
    for compiled in (False, True):
        model = random_model(config)
        generator = StepGenerator(model, random_tokens(config, 2, 3), actions[:3], Sampler(seed=3), past_steps=[1, 3])
        if compiled:
            generator.drawing = compiled_drawing(model, Sampler(seed=3), "eager")
        rolls.append(torch.stack([generator.step(of_step(actions, 3 + i)) for i in range(6)], dim=1))
    assert torch.equal(*rolls)


def test_it_is_compiled_once_for_all_positions_steps_and_windows() -> None:
    counter = CompileCounter()
    config = CONFIGS["full"]
    model, tokens, actions = random_model(config), random_tokens(config, 2, 2), random_actions(config, 2, 12)
    assert actions is not None
    generator = StepGenerator(model, tokens, actions[:2], Sampler(seed=3))
    generator.drawing = compiled_drawing(model, Sampler(seed=3), counter)
    for step in range(2, 10):
        generator.step(actions[step : step + 1])
    assert counter.frame_count == 1
    assert generator.model_calls > 8 * 6  # one for each position, and re-prefills


def test_forks_of_pasts_of_many_lengths_are_compiled_a_few_times() -> None:
    """Each length was recompiled, and the ninth hit PyTorch's limit, which is an error."""
    counter = CompileCounter()
    tokens = replace(CONFIG.tokens, height=1, width=2)  # type: ignore[type-var]
    config = replace(CONFIG, tokens=tokens, max_steps=7, transformer=ONE_BLOCK)
    model, actions = random_model(config), random_actions(config, 1, 9)
    assert actions is not None
    plain = StepGenerator(model, random_tokens(config, 1, 2), actions[:2], Sampler(seed=3))
    compiled = StepGenerator(model, random_tokens(config, 1, 2), actions[:2], Sampler(seed=3))
    compiled.drawing = compiled_drawing(model, Sampler(seed=3), counter)
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
    drawing = compiled_drawing(model, Sampler(), "eager")
    for batch in (1, 2, 3):
        actions = random_actions(config, batch, 3)
        assert actions is not None
        generator = StepGenerator(model, random_tokens(config, batch, 2), actions[:2], Sampler())
        generator.drawing = drawing
        assert len(generator.step(actions[2:])) == batch


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_in_the_loop_waits_for_the_device(name: str) -> None:
    """Fake tensors have no values: reading one fails."""
    config, sampler = CONFIGS[name], SAMPLERS[name]
    model, tokens, actions = random_model(config), random_tokens(config, 4, 2), random_actions(config, 4, 3)
    assert actions is not None
    drawing = compiled_drawing(model, sampler, "eager")
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cache = model.prefill(tokens[:, :2], actions[:2], model.init_cache(4), validate=False)
        context = model.step_context(tokens[:, 1], actions[2:], cache)
        rows = 2 if sampler.guided else 4
        current = mode.from_tensor(tokens[:rows, 1].flatten(1, 2))
        noise = mode.from_tensor(torch.rand(rows, 6, model.head.noise_per_token))
        for i in range(6):
            drawing._draw_position(current, torch.tensor([i]), torch.tensor([12]), context, cache, noise)
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):  # the check can fail
        current.sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_inductor_equals_uncompiled_drawing(name: str) -> None:
    expected, _ = drawn(name, 3, None)
    given, _ = drawn(name, 3, "inductor")
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_on_cuda_compiled_drawing_equals_uncompiled_without_waiting() -> None:
    config = CONFIG
    tokens, actions = random_tokens(config, 2, 2).to("cuda"), random_actions(config, 2, 12)
    assert actions is not None
    actions = actions.to("cuda")
    rolls = []
    for compiled in (False, True):
        model = random_model(config).to("cuda")
        generator = StepGenerator(
            model, tokens, actions[:2], Sampler(seed=3), decoding=Decoding(order="raster", compiled=compiled)
        )
        rolls.append(torch.stack([generator.step(actions[step : step + 1]) for step in range(2, 8)]))
        torch.cuda.set_sync_debug_mode("error")
        try:
            generator.step(actions[8:9])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*rolls)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
