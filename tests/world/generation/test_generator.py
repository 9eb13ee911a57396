"""Steps are drawn from the model's prediction given the past, in every order, with caches, forks and guidance."""

import statistics
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from world_models import CONFIG, FLOW, MASKED, VARIANTS, of_step, random_actions, random_model, random_tokens, rows

from vidtok_plugin import reference_path
from world_model.actions import GroupedActions
from world_model.architecture import WorldModelConfig
from world_model.decoding import Decoding, diagonal_groups, diagonal_mask, known_after, raster_groups
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.inputs.neighborhood import local_window
from world_model.model import WorldModel
from world_model.prediction.causal import CausalPrediction
from world_model.prediction.masked import MaskedPrediction

SAMPLER = Sampler(seed=3)
CAUSAL_KINDS = {name: VARIANTS[name] for name in ("full", "factored", "patches")}
KINDS = CAUSAL_KINDS | MASKED


def roll(generator: StepGenerator, actions: GroupedActions | None, first: int, steps: int) -> Tensor:
    """The next `steps` steps (b, T, H, W[, p]), the first of which has the index `first`."""
    return torch.stack([generator.step(of_step(actions, step)) for step in range(first, first + steps)], dim=1)


def start(
    config: WorldModelConfig, batch: int = 2, past: int = 2, sampler: Sampler = SAMPLER, **settings: Any
) -> tuple[StepGenerator, GroupedActions | None]:
    actions = random_actions(config, batch, 40)
    known = None if actions is None else actions[:past]
    return StepGenerator(random_model(config), random_tokens(config, batch, past), known, sampler, **settings), actions


def same(one: Tensor, other: Tensor) -> None:
    if one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(one, other)


@torch.no_grad()
def greedy_from(model: WorldModel, window: Tensor, actions: GroupedActions | None) -> Tensor:
    """The likeliest next step (b, H, W) after a window of whole steps, computed without a cache."""
    codes = torch.cat([window, torch.zeros_like(window[:, :1])], dim=1)
    for place in range(model.tokens.tokens_per_step):
        row, column = divmod(place, model.tokens.width)
        drawn = torch.zeros(len(window), dtype=torch.int64)
        scale = 1
        for size in model.head.sizes:
            # Logits are conditioned on the true factors before, which the last rounds have put there.
            index = model.head.sizes.index(size)
            codes[:, -1, row, column] = drawn
            logits = model.logits(codes, actions)[index][:, -1, row, column]
            drawn = drawn + scale * logits.argmax(-1)
            scale *= size
        codes[:, -1, row, column] = drawn
    return codes[:, -1]


@pytest.mark.parametrize("name", ["full", "factored"])
@pytest.mark.parametrize(("max_steps", "context_shift"), [(2, None), (4, 1), (4, 3), (5, 2)])
def test_a_full_context_drops_whole_steps(name: str, max_steps: int, context_shift: int | None) -> None:
    """Each drawn step is the model's prediction given only the newest steps, as a new window."""
    config = replace(VARIANTS[name], max_steps=max_steps)
    model, codes, actions = random_model(config), random_tokens(config, 2, 7), random_actions(config, 2, 17)
    assert actions is not None
    generator = StepGenerator(
        model, codes, actions[:7], Sampler(temperature=0), decoding=Decoding(context_shift=context_shift)
    )
    kept = max_steps - (max(1, max_steps // 4) if context_shift is None else context_shift)
    held = kept
    for step in range(7, 17):
        held = kept if held == max_steps else held
        drawn = generator.step(actions[step : step + 1])
        assert torch.equal(drawn, greedy_from(model, codes[:, step - held :], actions[step - held : step + 1]))
        codes, held = torch.cat([codes, drawn[:, None]], dim=1), held + 1


@pytest.mark.parametrize("name", ["full", "factored"])
@pytest.mark.parametrize(("max_steps", "past"), [(2, 3), (4, 2), (4, 3), (4, 7), (5, 3)])
def test_in_a_rolling_context_each_step_sees_those_before_it(name: str, max_steps: int, past: int) -> None:
    """Each drawn step is the model's prediction given all steps, of which each sees the newest before it."""
    config = replace(VARIANTS[name], max_steps=max_steps)
    model, codes, actions = random_model(config), random_tokens(config, 2, past), random_actions(config, 2, past + 12)
    assert actions is not None
    decoding = Decoding(context="rolling")
    generator = StepGenerator(model, codes, actions[:past], Sampler(temperature=0), decoding=decoding)
    begin = max(0, past - (max_steps - 1))
    differs = False
    for step in range(past, past + 12):
        drawn = generator.step(actions[step : step + 1])
        assert torch.equal(drawn, greedy_from(model, codes[:, begin:], actions[begin : step + 1]))
        newest = step - (max_steps - 1)
        if newest > begin:
            differs |= not torch.equal(drawn, greedy_from(model, codes[:, newest:], actions[newest : step + 1]))
        codes = torch.cat([codes, drawn[:, None]], dim=1)
    assert differs or max_steps == 2  # else the keys of dropped steps would tell nothing


@pytest.mark.parametrize(
    ("trained_steps", "decoding", "context"),
    [
        (None, Decoding(), "exact"),
        (6, Decoding(), "rolling"),
        (6, Decoding(context="exact"), "exact"),
        (6, Decoding(context_shift=1), "exact"),
        (None, Decoding(context="rolling"), "rolling"),
    ],
)
def test_contexts_roll_for_models_trained_on_longer_windows(
    trained_steps: int | None, decoding: Decoding, context: str
) -> None:
    generator, actions = start(replace(CONFIG, trained_steps=trained_steps), past=3, decoding=decoding)
    roll(generator, actions, 3, 4)
    assert (generator.window.prefills == 1) == (context == "rolling")


def test_a_rolling_context_reads_no_step_again() -> None:
    generator, actions = start(CONFIG, past=3, decoding=Decoding(context="rolling"))
    size = generator.state_bytes
    roll(generator, actions, 3, 20)
    assert generator.window.prefills == 1
    assert generator.state_bytes <= 1.5 * size  # room for half of the context more


def test_a_past_that_leaves_room_for_a_step_is_kept_whole() -> None:
    model, codes, actions = random_model(), random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 4)
    assert actions is not None and CONFIG.max_steps == 4
    generator = StepGenerator(model, codes, actions[:3], Sampler(temperature=0), decoding=Decoding(context_shift=3))
    assert torch.equal(generator.step(actions[3:]), greedy_from(model, codes, actions))


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_rollout_whatever_the_batch(name: str) -> None:
    config = KINDS[name]
    model, tokens, actions = random_model(config), random_tokens(config, 3, 2), random_actions(config, 3, 9)
    assert actions is not None
    together = roll(StepGenerator(model, tokens, actions[:2], SAMPLER), actions, 2, 7)
    row = rows(actions, slice(2, 3))
    assert row is not None
    alone = roll(StepGenerator(model, tokens[2:], row[:2], SAMPLER, indices=[2]), row, 2, 7)
    same(alone, together[2:])
    other = roll(StepGenerator(model, tokens, actions[:2], Sampler(seed=4)), actions, 2, 7)
    assert not torch.equal(other, together)


@pytest.mark.parametrize("name", KINDS)
def test_pasts_of_different_lengths_share_a_batch(name: str) -> None:
    """Each row equals a run of that row alone, as long as the longest fits the context."""
    config = replace(KINDS[name], max_steps=8)
    model, tokens, actions = random_model(config), random_tokens(config, 3, 3), random_actions(config, 3, 12)
    assert actions is not None
    counts = [3, 1, 2]
    together = roll(StepGenerator(model, tokens, actions[:3], SAMPLER, past_steps=counts), actions, 3, 8)
    for i, count in enumerate(counts):
        row = rows(actions, slice(i, i + 1))
        assert row is not None
        past = tokens[i : i + 1, 3 - count :]
        alone = StepGenerator(model, past, row[3 - count : 3], SAMPLER, indices=[i])
        same(roll(alone, row, 3, 5), together[i : i + 1, :5])
    assert together.shape[1] == 8  # also after the context is full


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("past", [1, 3])
def test_forks_of_one_past_equal_separate_rollouts(name: str, past: int) -> None:
    config = KINDS[name]
    generator, actions = start(config, past=past)
    assert actions is not None
    tokens = random_tokens(config, 2, past)
    futures = generator.fork(3, indices=[5, 6, 7, 8, 9, 10])
    theirs = actions.repeated(3)
    theirs = GroupedActions(values=(theirs.values + torch.arange(6)[:, None, None]) % 5, known=theirs.known)
    drawn = roll(futures, theirs, past, 6)
    own = roll(generator, actions, past, 6)  # the forked rollout goes on, and neither disturbs the other
    same(own, roll(start(config, past=past)[0], actions, past, 6))
    for i in range(6):
        row = rows(actions, slice(i // 3, i // 3 + 1))
        acts = rows(theirs, slice(i, i + 1))
        assert row is not None
        alone = StepGenerator(generator.model, tokens[i // 3 : i // 3 + 1], row[:past], SAMPLER, indices=[5 + i])
        same(roll(alone, acts, past, 6), drawn[i : i + 1])


def bytes_held(*generators: StepGenerator) -> int:
    """Size of all keys and values together, each buffer counted once."""
    segments = [segment for one in generators for segment in (one.window.cache.own, *one.window.cache.shared)]
    storages = [tensor.untyped_storage() for segment in segments for tensor in segment]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_fork_copies_nothing_of_the_past_and_draws_the_same_numbers() -> None:
    generator, actions = start(CONFIG, past=2)
    fork = generator.fork(4)
    room = 1 - generator.window.cache.length / generator.window.cache.capacity
    held = bytes_held(generator, fork)
    assert held == bytes_held(generator) * (1 + 4 * room) < 5 * bytes_held(generator)
    theirs = None if actions is None else actions.repeated(4)
    drawn = fork.step(of_step(theirs, 2))
    assert torch.equal(drawn, generator.step(of_step(actions, 2)).repeat_interleave(4, dim=0))
    with pytest.raises(ValueError, match="indices must name each of the 8 futures, got 2"):
        generator.fork(4, indices=[0, 1])


@pytest.mark.parametrize("name", KINDS)
def test_rollouts_on_the_fast_path_equal_the_reference_path(name: str) -> None:
    fast, actions = start(KINDS[name])
    with reference_path():
        plain, _ = start(KINDS[name])
        expected = roll(plain, actions, 2, 4)
    same(roll(fast, actions, 2, 4), expected)


@pytest.mark.parametrize("name", CAUSAL_KINDS)
def test_diagonal_order_with_the_largest_offset_is_raster_order(name: str) -> None:
    config = CAUSAL_KINDS[name]
    raster, actions = start(config)
    expected = roll(raster, actions, 2, 6)
    for diagonal_offset in (3, 5):
        diagonal, _ = start(config, decoding=Decoding(order="diagonal", diagonal_offset=diagonal_offset))
        same(roll(diagonal, actions, 2, 6), expected)
        assert diagonal.model_calls == raster.model_calls
    narrow, _ = start(config, decoding=Decoding(order="diagonal"))
    roll(narrow, actions, 2, 6)
    assert raster.model_calls - narrow.model_calls == 6 * (6 - 4)


@pytest.mark.parametrize("diagonal_offset", [1, 2])
@torch.no_grad()
def test_diagonal_steps_with_a_cache_equal_the_whole_window(diagonal_offset: int) -> None:
    model, codes, actions = random_model(), random_tokens(CONFIG, 2, 3), random_actions(CONFIG, 2, 3)
    causal, cache, previous, steps = model.prediction, model.init_cache(2), None, []
    assert isinstance(causal, CausalPrediction)
    for step in range(3):
        context = model.step_context(previous, of_step(actions, step), cache)
        truth = codes[:, step].flatten(1)
        current, given = torch.zeros_like(truth), torch.zeros(2, 6, 24)
        for group in diagonal_groups(2, 3, diagonal_offset, torch.device("cpu")):
            given[:, group.positions] = causal.step(current, group, context, cache)
            current[:, group.positions] = truth[:, group.positions]
        steps.append(given.unflatten(1, (2, 3)))
        cache, previous = cache.advanced(6), codes[:, step]
    whole = causal.hidden(model.window_inputs(codes, actions), diagonal_offset=diagonal_offset)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=1e-4)
    raster = model.score(codes, actions).losses
    torch.testing.assert_close(model.score(codes, actions, diagonal_offset=3).losses, raster, rtol=1e-4, atol=1e-4)
    same_mask = diagonal_offset == 2  # a row of three, two ahead, is finished when the next begins
    assert (
        torch.allclose(model.score(codes, actions, diagonal_offset=diagonal_offset).losses, raster, atol=1e-4)
        == same_mask
    )


def test_a_diagonal_sees_the_tokens_drawn_before_it() -> None:
    mask = diagonal_mask(2, 2, 3, 1, torch.device("cpu"))
    # Row 1's first position is drawn with row 0's second: it doesn't see the third.
    assert mask[6 + 3].tolist() == [True] * 6 + [True, True, False, True, False, False]
    assert mask[6 + 4].tolist() == [True] * 6 + [True, True, True, True, True, False]
    assert mask[:6, :6].equal(mask[6:, 6:]) and not mask[:6, 6:].any()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_take_the_same_tokens(name: str, dtype: torch.dtype) -> None:
    config = KINDS[name]
    model, tokens, actions = random_model(config).to(dtype), random_tokens(config, 2, 2), random_actions(config, 2, 4)
    assert actions is not None
    assert model.loss(tokens, actions[:2]).isfinite()
    drawn = StepGenerator(model, tokens, actions[:2], SAMPLER).step(of_step(actions, 2))
    assert drawn.dtype == (dtype if drawn.is_floating_point() else torch.int64)


def test_groups_cover_a_step_once_in_order() -> None:
    for height, width, diagonal_offset in ((4, 5, 1), (4, 5, 2), (1, 3, 1), (3, 1, 1)):
        groups = diagonal_groups(height, width, diagonal_offset, torch.device("cpu"))
        assert sorted(torch.cat([group.positions for group in groups]).tolist()) == list(range(height * width))
        assert len(groups) == width + (height - 1) * min(diagonal_offset, width)
    with pytest.raises(
        ValueError, match="diagonal_offset must be at least 1"
    ):  # scores were too good: tokens saw themselves
        random_model().score(random_tokens(CONFIG, 1, 2), random_actions(CONFIG, 1, 2), diagonal_offset=0)
    assert [group.positions.item() for group in raster_groups(2, 2, torch.device("cpu"))] == [0, 1, 2, 3]
    assert known_after(8, 6)[-1] == 6 and known_after(3, 64)[-1] == 64 and known_after(1, 4) == [4]
    assert len(known_after(20, 6)) == 6  # no call draws nothing


@pytest.mark.parametrize("name", ["masked", "masked factored"])
@torch.no_grad()
def test_masked_decoding_keeps_the_most_confident_tokens_and_redraws_the_rest(name: str) -> None:
    """Greedy, without noise in the choice, compared with the model without a cache."""
    config = MASKED[name]
    model, codes, actions = random_model(config), random_tokens(config, 2, 2), random_actions(config, 2, 3)
    assert actions is not None
    prediction, decoding = model.prediction, Decoding(order="masked", steps=3, choice_temperature=0.0)
    assert isinstance(prediction, MaskedPrediction) and config.copy_size == 3
    generator = StepGenerator(model, codes, actions[:2], Sampler(temperature=0), decoding=decoding)
    drawn = generator.step(of_step(actions, 2))
    known = torch.zeros(2, 2, 2, 3, dtype=torch.bool)
    current = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1)
    for count in known_after(3, 6):
        hidden = prediction.hidden(model.window_inputs(current, actions), known=known)[:, -1].flatten(1, 2)
        neighbor_codes = local_window(current[:, :-1], 3)
        best = model.head.draw(
            hidden,
            neighbor_codes[:, -1].flatten(1, 2),
            torch.zeros(2, 6, len(model.head.sizes)),
            Sampler(temperature=0),
            model.head.tables(),
        )
        assert best.confidence is not None
        before = known[:, -1].flatten(1)
        kept = best.confidence.masked_fill(before, float("inf")).topk(count, dim=1).indices
        now = before.scatter(1, kept, True)
        step = torch.where(now & ~before, best.tokens, current[:, -1].flatten(1))
        current[:, -1], known[:, -1] = step.view(2, 2, 3), now.view(2, 2, 3)
    assert torch.equal(drawn, current[:, -1])
    assert generator.model_calls == 1 + 3 + 1


@pytest.mark.parametrize("name", ["full", "factored", "patches", "masked"])
def test_guidance_scales_the_effect_of_the_actions(name: str) -> None:
    """Guidance 0 ignores the actions, and 1 changes nothing."""
    config = replace(KINDS[name], action_dropout=0.1)
    plain, actions = start(config)
    assert actions is not None
    unknown = GroupedActions(values=actions.values, known=torch.zeros_like(actions.known))
    none = StepGenerator(plain.model, random_tokens(config, 2, 2), unknown[:2], SAMPLER)
    zero, _ = start(config, sampler=replace(SAMPLER, guidance=0.0))
    same(roll(zero, actions, 2, 6), roll(none, unknown, 2, 6))
    nearly, _ = start(config, sampler=replace(SAMPLER, guidance=1 + 1e-9))  # twice the rows, equal logits
    same(roll(nearly, actions, 2, 3), roll(plain, actions, 2, 3))


@torch.no_grad()
def test_guided_logits_are_as_defined() -> None:
    config = replace(CONFIG, action_dropout=0.1)
    model, codes, actions = random_model(config), random_tokens(config, 2, 3), random_actions(config, 2, 3)
    assert actions is not None
    generator = StepGenerator(model, codes[:, :2], actions[:2], Sampler(temperature=0, guidance=3.0))
    first = generator.step(of_step(actions, 2))[:, 0, 0]
    unknown = GroupedActions(values=actions.values, known=torch.zeros_like(actions.known))
    with_, without = (model.logits(codes, acts)[0][:, 2, 0, 0] for acts in (actions, unknown))
    assert torch.equal(first, (without + 3 * (with_ - without)).argmax(-1))


@pytest.mark.parametrize("batch", [1, 3])
def test_changed_weights_count_from_the_next_window_on(batch: int) -> None:
    """Keys are computed and weights prepacked once per window. A change through `.data`, as by weight averaging, cannot
    be detected."""
    model, actions = random_model(CONFIG), random_actions(CONFIG, batch, 40)
    assert actions is not None
    tokens = random_tokens(CONFIG, batch, 3)
    drawn = roll(StepGenerator(model, tokens, actions[:3], Sampler(temperature=0)), actions, 3, 1)
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(-1).contiguous()
    changed = roll(StepGenerator(model, tokens, actions[:3], Sampler(temperature=0)), actions, 3, 4)
    again = random_model(CONFIG)
    generator = StepGenerator(again, tokens, actions[:3], Sampler(temperature=0))
    same(roll(generator, actions, 3, 1), drawn)
    for parameter in again.parameters():
        parameter.data.copy_(parameter.data.flip(-1).contiguous())
    window = generator.window
    window.tokens = torch.cat([tokens, changed[:, :1]], dim=1)[:, -window.kept_steps :]  # the past of `changed`
    same(roll(generator, actions, 4, 3), changed[:, 1:])
    assert not torch.equal(changed[:, :1], drawn)


def test_temperature_scales_the_noise_that_patches_start_from() -> None:
    cold, actions = start(FLOW, sampler=Sampler(temperature=0.0, seed=1))
    other, _ = start(FLOW, sampler=Sampler(temperature=0.0, seed=2))
    same(cold.step(of_step(actions, 2)), other.step(of_step(actions, 2)))
    warm = [start(FLOW, sampler=Sampler(seed=seed))[0].step(of_step(actions, 2)) for seed in (1, 2)]
    assert not torch.allclose(*warm, atol=1e-2)


def test_a_thousand_frames_take_no_more_memory_than_ten() -> None:
    assert CONFIG.tokens is not None
    one_block = replace(CONFIG.transformer, depth=1)
    config = replace(CONFIG, tokens=replace(CONFIG.tokens, height=1, width=1), transformer=one_block)
    generator, actions = start(config, batch=1)
    roll(generator, actions, 2, 10)
    size = generator.state_bytes
    for _ in range(14):
        roll(generator, actions, 2, 36)  # 504 steps of 2 frames
    assert generator.state_bytes == size
    assert generator.window.tokens.shape[1] < CONFIG.max_steps
    assert generator.window.actions is not None and generator.window.actions.num_steps < CONFIG.max_steps


@pytest.mark.slow
def test_a_step_takes_as_long_after_a_thousand_frames_as_after_ten() -> None:
    """Medians over rounds of whole windows, re-prefills included."""
    generator, actions = start(CONFIG, batch=1)
    seconds = []
    for _ in range(126):
        begun = time.process_time()
        roll(generator, actions, 2, 4)
        seconds.append(time.process_time() - begun)
    assert statistics.median(seconds[-60:]) < 1.3 * statistics.median(seconds[3:63])


@pytest.mark.parametrize("name", ["full", "factored", "patches", "masked"])
def test_steps_are_drawn_under_autocast(name: str) -> None:
    """In diagonal order, buffers of single precision refused keys of half precision."""
    config = KINDS[name]
    orders = [Decoding(), Decoding(order="diagonal")] if config.prediction == "causal" else [Decoding()]
    for decoding in orders:
        with torch.autocast("cpu", torch.bfloat16):
            generator, actions = start(config, decoding=decoding)
            drawn = roll(generator, actions, 2, 4)
        assert drawn.shape[1] == 4 and drawn.isfinite().all()


@pytest.mark.parametrize(("count", "rows_given"), [(3, 2), (6, 2), (5, 1)])
def test_actions_of_other_steps_than_the_past_are_refused(count: int, rows_given: int) -> None:
    """The newest of each were paired, so that steps got the actions of other steps."""
    actions = rows(random_actions(CONFIG, 2, 9), slice(0, rows_given))
    assert actions is not None
    message = rf"each of the 2 rollouts and 5 latent steps .*got \({rows_given}, {count}\)"
    with pytest.raises(ValueError, match=message):
        StepGenerator(random_model(CONFIG), random_tokens(CONFIG, 2, 5), actions[:count], SAMPLER)


def test_actions_of_another_batch_are_refused_before_anything_is_drawn() -> None:
    generator, actions = start(CONFIG)
    with pytest.raises(ValueError, match=r"each of the 2 rollouts and 1 latent steps .*got \(1, 1\)"):
        generator.step(of_step(rows(actions, slice(0, 1)), 2))
    same(roll(generator, actions, 2, 2), roll(start(CONFIG)[0], actions, 2, 2))


def begin(config: WorldModelConfig = CONFIG, **changes: Any) -> None:
    settings: dict[str, Any] = {"sampler": SAMPLER}
    start(config, **settings | changes)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CONFIG, {"indices": [0]}, "indices must name each of the 2 rollouts, got 1"),
        (CONFIG, {"past_steps": [1, 3]}, r"past_steps must be 1 to 2 for each of the 2 rollouts, got \[1, 3\]"),
        (CONFIG, {"sampler": Sampler(guidance=2.0)}, "guidance 2.0 needs a model that was trained with actions"),
        (CONFIG, {"sampler": Sampler(flow_steps=2)}, "flow_steps is for continuous tokens, got 2"),
        (FLOW, {"sampler": Sampler(top_k=2)}, "top_k and top_p are for codes"),
        (
            CONFIG,
            {"decoding": Decoding(order="masked")},
            "order masked needs a model with prediction masked",
        ),
        (MASKED["masked"], {"decoding": Decoding(order="raster")}, "order raster needs a model with prediction causal"),
        (
            CONFIG,
            {"decoding": Decoding(context_shift=4)},
            "context_shift must be less than the model's max_steps, 4, got 4",
        ),
        (replace(CONFIG, max_steps=1), {}, "max_steps must be at least 2"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    config: WorldModelConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        begin(config, **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diagonal_offset": 2}, "diagonal_offset is for order diagonal, got 2 for None"),
        ({"order": "raster", "steps": 2}, "steps is for order masked, got 2 for raster"),
        ({"order": "spiral"}, "order must be 'raster', 'diagonal' or 'masked' or None, got 'spiral'"),
        ({"order": "diagonal", "diagonal_offset": 0}, "diagonal_offset must be at least 1, got 0"),
        ({"context": "sliding"}, "context must be 'exact' or 'rolling' or None, got 'sliding'"),
        ({"context": "rolling", "context_shift": 2}, "context_shift is for an exact context, got 2"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)
