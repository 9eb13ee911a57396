"""Each option changes the distribution as defined, and each rollout has its own random numbers."""

import pytest
import torch
from torch import Tensor

from world_model.heads.sampler import RolloutNoise, Sampler

LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0, 1.5], [0.0, 0.0, 0.0, 3.0, -5.0]])


def frequencies(sampler: Sampler, logits: Tensor, draws: int = 4000) -> Tensor:
    """Relative frequencies of the tokens drawn at evenly spaced numbers."""
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = sampler.draw(logits.expand(draws, -1), uniforms)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / draws


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(temperature=0.5),
        Sampler(temperature=2.0, top_k=3),
        Sampler(top_p=0.7),
        Sampler(temperature=0.8, top_k=4, top_p=0.9),
        Sampler(temperature=0.0),
    ],
)
@pytest.mark.parametrize("row", [0, 1])
def test_tokens_are_drawn_with_their_probabilities(sampler: Sampler, row: int) -> None:
    expected = sampler.probabilities(LOGITS[row : row + 1])[0]
    assert expected.sum().item() == pytest.approx(1)
    torch.testing.assert_close(frequencies(sampler, LOGITS[row]), expected, atol=1e-3, rtol=0)


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(Sampler(temperature=0.5).probabilities(LOGITS), (LOGITS * 2).softmax(-1))


def test_top_k_keeps_the_likeliest() -> None:
    p = Sampler(top_k=2).probabilities(LOGITS[:1])
    assert torch.nonzero(p[0]).flatten().tolist() == [0, 4]
    torch.testing.assert_close(p[0, [0, 4]], LOGITS[0, [0, 4]].softmax(-1))
    assert (Sampler(top_k=99).probabilities(LOGITS) > 0).all()


def test_top_p_keeps_the_fewest_likeliest_that_reach_it() -> None:
    p = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    kept = {0.4: [0], 0.5: [0], 0.6: [0, 2], 0.85: [0, 1, 2], 1.0: [0, 1, 2, 3]}
    for top_p, codes in kept.items():
        left = Sampler(top_p=top_p).probabilities(p.log())[0]
        assert torch.nonzero(left).flatten().tolist() == codes, top_p
        torch.testing.assert_close(left[codes], p[0, codes] / p[0, codes].sum())


def test_top_p_applies_to_what_top_k_leaves() -> None:
    p = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    # of 0.5 and 0.3 the likelier has 5/8
    assert torch.nonzero(Sampler(top_k=2, top_p=0.6).probabilities(p)[0]).flatten().tolist() == [0]
    assert torch.nonzero(Sampler(top_p=0.6).probabilities(p)[0]).flatten().tolist() == [0, 2]


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(temperature=0).draw(LOGITS, torch.rand(2)).tolist() == [0, 3]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(top_k=2), Sampler(top_p=0.5)])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_an_impossible_token_is_never_drawn(sampler: Sampler, uniform: float) -> None:
    """A number just below 1 rounds to 1 in float32, which would fall beyond the last token."""
    logits = torch.tensor([[float("-inf"), 1.0, 1.0, 1.0, float("-inf")]])
    assert sampler.draw(logits, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 2, 3)


def test_a_rollouts_numbers_depend_only_on_seed_and_index() -> None:
    together = RolloutNoise(3, range(4))
    first, second = together.uniforms(5), together.uniforms(2)
    alone = RolloutNoise(3, [2])
    assert torch.equal(alone.uniforms(5), first[2:3]) and torch.equal(alone.uniforms(2), second[2:3])
    assert not torch.equal(RolloutNoise(4, [2]).uniforms(5), first[2:3])
    assert len(first.flatten().unique()) == 20


def test_a_fork_draws_the_same_numbers() -> None:
    noise = RolloutNoise(0, range(2))
    noise.uniforms(3)
    fork = noise.fork()
    assert torch.equal(noise.uniforms(4), fork.uniforms(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"seed": -1}, "seed must be 0 or above"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**settings)  # type: ignore[arg-type]
