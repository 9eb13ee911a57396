"""Each row of a batch has a context of its own: it draws what it would draw alone, whatever the age of the others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from world_models import CONFIG, VARIANTS, random_actions, random_model, random_tokens, rows

from world_model.actions import GroupedActions
from world_model.architecture import WorldModelConfig
from world_model.decoding import Decoding
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel

SAMPLER = Sampler(seed=3)
RASTER, DIAGONAL = Decoding(context_shift=2), Decoding(order="diagonal", context_shift=2)
DRAWS = Decoding(order="masked", steps=2, context_shift=2)
ROLLING = Decoding(order="diagonal", context="rolling")
CASES: dict[str, tuple[str, Sampler, Decoding]] = {
    "raster": ("full", SAMPLER, RASTER),
    "diagonal": ("full", SAMPLER, DIAGONAL),
    "diagonal, most dropped": ("factored", SAMPLER, replace(DIAGONAL, context_shift=4)),
    "no actions": ("no actions", SAMPLER, RASTER),
    "patches": ("patches", SAMPLER, DIAGONAL),
    "masked": ("masked", SAMPLER, DRAWS),
    "masked patches": ("masked patches", SAMPLER, DRAWS),
    "guided": ("full", replace(SAMPLER, guidance=2.0), DIAGONAL),
    "rolling": ("full", SAMPLER, Decoding(context="rolling")),
    "rolling, diagonal and guided": ("full", replace(SAMPLER, guidance=2.0), ROLLING),
    "rolling, patches": ("patches", SAMPLER, ROLLING),
    "rolling, masked": ("masked", SAMPLER, Decoding(order="masked", steps=2, context="rolling")),
    "guided and masked": ("masked", replace(SAMPLER, guidance=2.0), DRAWS),
}


class Case:
    """A world model, and pasts and actions for rollouts, with what each of these draws alone."""

    def __init__(self, name: str) -> None:
        variant, self.sampler, self.decoding = CASES[name]
        self.config: WorldModelConfig = replace(VARIANTS[variant], max_steps=5)
        if self.sampler.guided:
            self.config = replace(self.config, action_dropout=0.1)
        self.model = random_model(self.config)
        self.tokens = random_tokens(self.config, 8, 6)
        self.actions = random_actions(self.config, 8, 40)

    def alone(self, index: int, past: int, steps: int) -> Tensor:
        """The steps (1, T, H, W[, p]) that follow the last `past` of rollout `index` up to step 6."""
        generator = self.start([index], [past])
        return torch.stack([generator.step(self.of([index], [6 + i])) for i in range(steps)], dim=1)

    def start(self, indices: list[int], pasts: list[int], **settings: Any) -> StepGenerator:
        longest = max(pasts)
        actions = rows(self.actions, indices)
        return StepGenerator(
            self.model,
            self.tokens[indices][:, -longest:],
            None if actions is None else actions[6 - longest : 6],
            self.sampler,
            indices,
            decoding=self.decoding,
            past_steps=pasts,
            **settings,
        )

    def reset(self, generator: StepGenerator, places: list[int], indices: list[int], pasts: list[int]) -> None:
        longest = max(pasts)
        actions = rows(self.actions, indices)
        tokens = self.tokens[indices][:, -longest:]
        actions = None if actions is None else actions[6 - longest : 6]
        generator.reset_rows(places, tokens, actions, indices, past_steps=pasts)

    def of(self, indices: list[int], steps: list[int]) -> GroupedActions | None:
        """The actions of one step of each rollout, each its own."""
        if self.actions is None:
            return None
        values, known = self.actions.values[indices, steps][:, None], self.actions.known[indices, steps][:, None]
        return GroupedActions(values=values, known=known)


def same(one: Tensor, other: Tensor) -> None:
    if one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    else:
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_different_ages_draw_what_each_draws_alone(name: str) -> None:
    """All rows dropped their oldest steps together, when the longest was full."""
    case, indices, pasts = Case(name), [0, 1, 2, 3], [1, 3, 2, 5]
    generator = case.start(indices, pasts)
    together = torch.stack([generator.step(case.of(indices, [6 + i] * 4)) for i in range(11)], dim=1)
    for i, past in enumerate(pasts):
        same(together[i : i + 1], case.alone(i, past, 11))


@pytest.mark.parametrize("name", CASES)
def test_rows_start_again_while_the_others_go_on(name: str) -> None:
    case = Case(name)
    indices, ages = [0, 1, 2], [0, 0, 0]  # of the rollout in each row, and its steps so far
    pasts, drawn = {0: 2, 1: 2, 2: 2}, {index: [] for index in range(8)}
    resets = {1: ([1], [3], [4]), 4: ([2, 0], [4, 5], [1, 6]), 5: ([1], [6], [2]), 6: ([2], [7], [5])}
    generator = case.start(indices, [2, 2, 2])
    for step in range(11):
        if step in resets:
            places, new, lengths = resets[step]
            case.reset(generator, places, new, lengths)
            for place, index, length in zip(places, new, lengths, strict=True):
                indices[place], ages[place], pasts[index] = index, 0, length
        tokens = generator.step(case.of(indices, [6 + age for age in ages]))
        for place, index in enumerate(indices):
            drawn[index].append(tokens[place])
            ages[place] += 1
    for index, past in pasts.items():
        same(torch.stack(drawn[index])[None], case.alone(index, past, len(drawn[index])))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("before", [0, 2])
def test_forks_of_rows_of_different_ages_do_not_disturb_each_other(name: str, before: int) -> None:
    """Rows are re-prefilled and start again on both sides; neither writes into the past that both read."""
    case, indices, pasts = Case(name), [0, 1], [1, 3]
    generator = case.start(indices, pasts)
    own = [generator.step(case.of(indices, [6 + i] * 2)) for i in range(before)]
    futures = generator.fork(2, indices=[0, 5, 1, 6])
    nested = futures.fork(1)
    case.reset(futures, [3], [7], [2])
    rolled: list[Tensor] = []
    for i in range(before, before + 5):
        rolled.append(futures.step(case.of([0, 0, 1, 7], [6 + i] * 3 + [6 + i - before])))
        own.append(generator.step(case.of(indices, [6 + i] * 2)))
    again = [nested.step(case.of([0, 0, 1, 1], [6 + i] * 4)) for i in range(before, before + 5)]
    for i, past in enumerate(pasts):
        alone = case.alone(i, past, before + 5)
        same(torch.stack(own, dim=1)[i : i + 1], alone)
        if before == 0:  # the forks draw the numbers of their indices from the beginning
            same(torch.stack(rolled, dim=1)[2 * i : 2 * i + 1], alone)
            same(torch.stack(again, dim=1)[2 * i : 2 * i + 1], alone)
    same(torch.stack(rolled, dim=1)[3:], case.alone(7, 2, 5))
    if not case.model.tokens.patch_dim:
        assert not torch.equal(torch.stack(rolled)[:, 0], torch.stack(rolled)[:, 1])


class Prefills:
    """Counts the tokens of a model's prefills."""

    def __init__(self, model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        prefill = model.transformer.prefill

        def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.tokens.append(x.shape[0] * x.shape[1])
            return prefill(x, *args, **kwargs)

        monkeypatch.setattr(model.transformer, "prefill", counted)


def test_only_full_rows_are_prefilled_those_of_a_step_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of 5 steps of 6 tokens drop 2, so that full rows are prefilled with 3, before every other step."""
    case = Case("diagonal")
    prefills = Prefills(case.model, monkeypatch)
    generator = case.start([0, 1, 2], [4, 4, 1])
    assert prefills.tokens == [3 * 4 * 6]
    counts = []
    for i in range(8):
        before = len(prefills.tokens)
        generator.step(case.of([0, 1, 2], [6 + i] * 3))
        counts.append(prefills.tokens[before:])
    both, one = [2 * 3 * 6], [3 * 6]
    assert counts == [[], both, [], both, one, both, one, both]
    assert generator.model_calls == len(prefills.tokens) + 8 * 4
    before = len(prefills.tokens)
    case.reset(generator, [2, 0], [3, 4], [1, 2])
    assert prefills.tokens[before:] == [2 * 2 * 6]


def test_out_of_phase_rows_take_the_room_of_the_dropped_steps_more_and_in_phase_rows_none() -> None:
    case = Case("diagonal")
    generator = case.start([0, 1], [3, 1])
    size = generator.window.cache.num_bytes
    assert case.config.max_steps == 5
    assert size == case.start([0, 1], [3, 3]).window.cache.num_bytes
    sizes = set()
    for i in range(12):
        generator.step(case.of([0, 1], [6 + i % 8] * 2))
        case.reset(generator, [i % 2], [2], [1])
        sizes.add(generator.window.cache.num_bytes)
    assert sizes == {size, size // 5 * 7}
    case.reset(generator, [1, 0], [2, 3], [2, 2])
    assert generator.window.cache.num_bytes == size and generator.window.cache.begin is None


def test_positions_stay_exact_after_many_steps() -> None:
    """Rows that start again by turns never fill up together, so that the cache's positions grow with the steps."""
    case = Case("diagonal")
    generator = case.start([0, 1], [2, 1])
    generator.window.first_step = 10**7  # as after that many steps
    generator.window._move(generator.window.held)
    case.reset(generator, [0], [0], [2])
    drawn = [generator.step(case.of([0, 1], [6 + i] * 2)) for i in range(4)]
    assert generator.window.first_step >= 10**7
    same(torch.stack(drawn, dim=1)[:1], case.alone(0, 2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [0, 0]}, r"rows must be different ones of the 2 rollouts, 0 to 1, got \[0, 0\]"),
        ({"rows": [2, 1]}, r"got \[2, 1\]"),
        ({"rows": []}, r"got \[\]"),
        ({"rows": [1]}, "tokens must be a past for each of the 1 rows, got 2"),
        ({"actions": None}, "actions must be given, as for the pasts"),
        ({"indices": [1]}, "indices must name each of the 2 rollouts, got 1"),
        ({"past_steps": [1, 3]}, r"past_steps must be 1 to 2 .* got \[1, 3\]"),
    ],
)
def test_rows_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    model, tokens, actions = random_model(), random_tokens(CONFIG, 2, 2), random_actions(CONFIG, 2, 2)
    generator = StepGenerator(model, tokens, actions, SAMPLER)
    settings: dict[str, Any] = {"rows": [0, 1], "tokens": tokens, "actions": actions, "indices": [3, 4]}
    with pytest.raises(ValueError, match=message):
        generator.reset_rows(**settings | changes)
