"""Guessed and checked tokens are those that drawing one by one gives, in fewer calls where guesses are right."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from world_models import CONFIG, FLOW, VARIANTS, of_step, random_actions, random_model, random_tokens

from world_model.actions import GroupedActions
from world_model.architecture import OutcomeConfig, WorldModelConfig
from world_model.decoding import Decoding, raster_groups
from world_model.generation.drawing import make_drawing
from world_model.generation.generator import StepGenerator
from world_model.heads.codes import CodeHead
from world_model.heads.sampler import Sampler
from world_model.prediction.causal import CausalPrediction

GUIDED = replace(CONFIG, action_dropout=0.1)


def begin(
    config: WorldModelConfig, sampler: Sampler, decoding: Decoding, past_steps: list[int] | None = None
) -> tuple[StepGenerator, GroupedActions | None]:
    model, actions = random_model(config), random_actions(config, 3, 20)
    known = None if actions is None else actions[:2]
    tokens = random_tokens(config, 3, 2)
    return StepGenerator(model, tokens, known, sampler, decoding=decoding, past_steps=past_steps), actions


@pytest.mark.parametrize("draft_tokens", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("config", "sampler", "decoding"),
    [
        (VARIANTS["full"], Sampler(seed=3), Decoding()),
        (VARIANTS["full"], Sampler(temperature=0), Decoding(context="rolling")),
        (VARIANTS["factored"], Sampler(seed=3, temperature=0.8, top_k=3, top_p=0.9), Decoding()),
        (GUIDED, Sampler(seed=3, guidance=2.0), Decoding(context="rolling")),
    ],
    ids=["full", "greedy", "factored", "guided"],
)
def test_tokens_are_those_of_drawing_one_by_one(
    config: WorldModelConfig, sampler: Sampler, decoding: Decoding, draft_tokens: int
) -> None:
    """Over full contexts, for rows of different ages; and what they were drawn from is the same, too."""
    config = replace(config, outcomes=OutcomeConfig())
    plain, actions = begin(config, sampler, decoding, [1, 2, 2])
    guessed, _ = begin(config, sampler, replace(decoding, draft_tokens=draft_tokens), [1, 2, 2])
    for step in range(2, 9):
        known = of_step(actions, step)
        assert torch.equal(guessed.step(known, entropy=True), plain.step(known, entropy=True))
        assert plain.entropy is not None and guessed.entropy is not None
        torch.testing.assert_close(guessed.entropy, plain.entropy, rtol=1e-4, atol=1e-5)
        assert plain.outcomes is not None and guessed.outcomes is not None
        torch.testing.assert_close(guessed.outcomes.rewards, plain.outcomes.rewards, rtol=1e-3, atol=1e-5)
    futures = of_step(actions, 9)
    assert torch.equal(guessed.fork().step(futures), plain.fork().step(futures))


@pytest.mark.parametrize("sampler", [Sampler(temperature=0), Sampler(seed=3)], ids=["greedy", "full"])
def test_in_bfloat16_each_token_is_that_of_drawing_one_by_one_up_to_near_ties(sampler: Sampler) -> None:
    """Calls of other sizes round other sums, so two rollouts in bfloat16 part at the first near-tie, and whole rollouts
    cannot be compared. But given the tokens before it, each is the one that plain bfloat16 draws, unless its random
    number is within rounding of a border between two tokens, or its logit within rounding of the highest."""
    precise = Decoding(precision="bfloat16")
    plain, actions = begin(CONFIG, sampler, precise)
    guessed, _ = begin(CONFIG, sampler, replace(precise, draft_tokens=4))
    model = plain.model
    assert isinstance(model.prediction, CausalPrediction) and isinstance(model.head, CodeHead)
    assert model.dtype == guessed.model.dtype == torch.bfloat16
    for step in range(2, 9):
        known = of_step(actions, step)
        uniforms = guessed.noise.fork().uniforms(6).float()
        drawn = guessed.step(known)
        tokens = drawn.flatten(1)
        with torch.inference_mode():
            context = plain.window.next_step(known, None)
            for i, group in enumerate(raster_groups(2, 3, model.device)):
                hidden = model.prediction.step(tokens, group, context, plain.window.cache)
                assert context.neighbor_codes is not None
                codes, near = tokens[:, i : i + 1], context.neighbor_codes[:, i : i + 1]
                (logits,) = model.head.logits(hidden, near, codes, context.head_tables)
                logits = logits[:, 0].float()
                if sampler.greedy:
                    assert (logits.gather(1, codes) >= logits.amax(1, keepdim=True) - 0.1).all()
                    continue
                p = logits.softmax(-1)
                end, u = p.cumsum(1).gather(1, codes), uniforms[:, i : i + 1]
                assert ((end - p.gather(1, codes) - 0.02 <= u) & (u <= end + 0.02)).all()
            plain.window.append(drawn, known, in_cache=True)


def calls_for(guesses: Tensor, draft_tokens: int) -> int:
    """Calls that draw the step after a past from right tokens plus `guesses` (b, n); it equals drawing one by one."""
    plain, actions = begin(CONFIG, Sampler(seed=3), Decoding())
    expected = plain.step(of_step(actions, 2)).flatten(1)
    generator, _ = begin(CONFIG, Sampler(seed=3), Decoding())
    drawing = make_drawing(generator.model, generator.sampler, Decoding(draft_tokens=draft_tokens))
    with torch.inference_mode():
        noise = generator.noise.uniforms(drawing.noise_per_step).float()
        context = generator.window.next_step(of_step(actions, 2), None)
        drawn = drawing.draw((expected + guesses) % 12, context, generator.window.cache, noise)
    assert torch.equal(drawn.tokens, expected)
    return drawn.calls


def test_right_guesses_save_calls_and_the_slowest_row_decides() -> None:
    right, wrong = torch.zeros(3, 6, dtype=torch.int64), torch.ones(3, 6, dtype=torch.int64)
    assert [calls_for(right, k) for k in (1, 2, 4, 100)] == [6, 3, 2, 1]
    one_wrong = right.clone()
    one_wrong[1, 2] = 1  # after its call the rest is guessed from the right tokens, but for one call more
    assert [calls_for(one_wrong, k) for k in (1, 2, 4, 100)] == [6, 4, 2, 2]
    assert calls_for(wrong, 1) == 6 and 2 <= calls_for(wrong, 100) <= 6


def test_patches_other_orders_and_compiled_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="draft_tokens is for codes, got 4 for a model of patches"):
        begin(FLOW, Sampler(), Decoding(draft_tokens=4))
    with pytest.raises(ValueError, match="draft_tokens is for order raster, got diagonal"):
        Decoding(order="diagonal", draft_tokens=4)
    with pytest.raises(ValueError, match="compiled calls have as many tokens each time, got draft_tokens 4 too"):
        Decoding(compiled=True, draft_tokens=4)
    with pytest.raises(ValueError, match="draft_tokens is for order raster, and this model's is masked"):
        begin(VARIANTS["masked"], Sampler(), Decoding(draft_tokens=4))
    with pytest.raises(ValueError, match="draft_tokens must be at least 1, got 0"):
        Decoding(draft_tokens=0)
