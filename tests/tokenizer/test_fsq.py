"""FSQ equals the published codes and losses, without a tokens x codebook matrix."""

import math

import numpy as np
import pytest
import torch
from benchmark_files import load_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor

from vidtok_plugin.tokenizer.objective import ObjectiveConfig
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes
from vidtok_plugin.tokenizer.regularizers import FSQ, fsq_terms

GOLDEN = load_file(GOLDEN_FILES / "fsq.safetensors")
LEVELS = {"8x5": (8, 8, 8, 8, 8), "mixed": (8, 6, 5), "odd": (7, 5, 5, 5)}
levels_strategy = st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple)


def golden_input(levels: tuple[int, ...]) -> Tensor:
    noise = np.random.RandomState(2).standard_normal((2, len(levels), 3, 4, 4))
    return torch.from_numpy(1.5 * noise).float()


def codebook(levels: tuple[int, ...]) -> Tensor:
    """All normalized codes (codebook, channels) by index: the first channel varies fastest."""
    values = [(torch.arange(level, dtype=torch.float64) - level // 2) / (level // 2) for level in levels]
    return torch.cartesian_prod(*reversed(values)).view(-1, len(levels)).flip(1)


def plain_entropy(z: Tensor, levels: tuple[int, ...], clamp: bool) -> Tensor:
    """The reference: entropies over the whole codebook, the tokens' mean minus that of the tokens' mean distribution.

    With `clamp` both are `-p log(max(p, 1e-5))`, as published; without, only the latter is, as in ours.
    """
    z = z.movedim(1, -1).reshape(-1, len(levels))
    p = (2 * 100 * z @ codebook(levels).to(z).T).softmax(-1)
    floor = 1e-5 if clamp else 1e-300
    of_a_token = -(p * p.clamp(min=floor).log()).sum(-1).mean()
    mean = p.mean(0)
    return of_a_token + (mean * mean.clamp(min=1e-5).log()).sum()


def terms(z: Tensor, levels: tuple[int, ...]) -> dict[str, Tensor]:
    return FSQ(levels)(z, sample=False, with_terms=True).terms


@pytest.mark.parametrize("name", LEVELS)
def test_codes_equal_the_published_ones(name: str) -> None:
    quantized = FSQ(LEVELS[name])(golden_input(LEVELS[name]), sample=False, with_terms=False)
    assert torch.equal(quantized.indices, GOLDEN[f"fsq.{name}.indices"].long())
    torch.testing.assert_close(quantized.latents, GOLDEN[f"fsq.{name}.latents"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LEVELS)
def test_losses_equal_the_published_ones(name: str) -> None:
    cfg, ours = ObjectiveConfig(), terms(golden_input(LEVELS[name]), LEVELS[name])
    loss = sum(cfg.regularizer_weight(term, 500) * value for term, value in ours.items())
    torch.testing.assert_close(loss, GOLDEN[f"fsq.{name}.aux_loss"][0], rtol=5e-5, atol=0)


@settings(max_examples=20)
@given(levels=levels_strategy.filter(lambda levels: math.prod(levels) <= 4096), scale=st.floats(0.0, 3.0))
def test_the_factorized_entropy_equals_the_plain_one(levels: tuple[int, ...], scale: float) -> None:
    z = scale * torch.randn(2, len(levels), 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(terms(z, levels)["entropy"], plain_entropy(z, levels, clamp=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LEVELS)
def test_gradients_of_the_factorized_entropy_equal_those_of_the_plain_one(name: str) -> None:
    levels = LEVELS[name]
    z = (0.02 * golden_input(levels)).double()[:1, :, :1].requires_grad_()  # small, so that there are gradients
    (ours,) = torch.autograd.grad(terms(z, levels)["entropy"], z)
    (plain,) = torch.autograd.grad(plain_entropy(z, levels, clamp=False), z)
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)


def test_the_published_clamp_matters_only_where_a_token_is_undecided() -> None:
    """A product over channels cannot reproduce the clamp: a deliberate difference, only at the start of training."""
    levels = LEVELS["8x5"]
    z = golden_input(levels).double()[:1, :, :1]
    decided = plain_entropy(z, levels, clamp=True) - plain_entropy(z, levels, clamp=False)
    undecided = plain_entropy(0 * z, levels, clamp=True) - plain_entropy(0 * z, levels, clamp=False)
    assert decided.abs() < 1e-3 and undecided.abs() <= math.log(1e5) + 1


def test_the_loss_of_a_large_codebook_takes_less_than_200_megabytes() -> None:
    """262,144 codes and the 5,120 tokens of 17x256x256, for which the plain form allocates 5.4 GB a copy."""
    z = torch.randn(1, 6, 5, 32, 32, requires_grad=True)
    with LiveBytes([z]) as count:
        terms(z, (8,) * 6)["entropy"].backward()
    assert 2 * 5120 * 512 * 4 < count.peak < 200e6  # two half-codebook matrices at least


def test_the_benchmark_compares_forms_of_one_loss() -> None:
    benchmark = load_benchmark("fsq_loss")
    z = golden_input(LEVELS["8x5"])
    torch.testing.assert_close(*(form(z, LEVELS["8x5"]) for form in benchmark.FORMS.values()), rtol=5e-5, atol=0)
    torch.testing.assert_close(benchmark.plain(z, LEVELS["8x5"]), GOLDEN["fsq.8x5.aux_loss"][0], rtol=2e-6, atol=0)


def test_commitment_pulls_the_latent_before_the_tanh_to_its_detached_code() -> None:
    levels = LEVELS["mixed"]
    z = golden_input(levels).requires_grad_()
    quantized = FSQ(levels)(z, sample=False, with_terms=True)
    codes = quantized.latents.detach()
    torch.testing.assert_close(quantized.terms["commitment"], (z - codes).square().mean())
    (gradient,) = torch.autograd.grad(quantized.terms["commitment"], z)
    torch.testing.assert_close(gradient, 2 * (z - codes).detach() / z.numel())


@pytest.mark.parametrize("name", LEVELS)
def test_the_gradient_passes_straight_through_the_rounding(name: str) -> None:
    levels = LEVELS[name]
    z = golden_input(levels).double().requires_grad_()
    weight = torch.randn_like(z)
    (ours,) = torch.autograd.grad((FSQ(levels)(z, sample=False, with_terms=False).latents * weight).sum(), z)
    level = torch.tensor(levels, dtype=torch.float64).view(1, -1, 1, 1, 1)
    half_width, offset = (level - 1) * 1.001 / 2, (level % 2 == 0) * 0.5
    bounded = torch.tanh(z + torch.atanh(offset / half_width)) * half_width - offset
    (expected,) = torch.autograd.grad((bounded / (level // 2) * weight).sum(), z)
    torch.testing.assert_close(ours, expected)


@settings(max_examples=30)
@given(levels=levels_strategy, data=st.data())
def test_indices_and_latents_are_inverse(levels: tuple[int, ...], data: st.DataObject) -> None:
    fsq, size = FSQ(levels), math.prod(levels)
    drawn = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    indices = torch.tensor([0, size - 1, *drawn]).view(1, -1, 1, 1)
    latents = fsq.indices_to_latents(indices)
    assert latents.shape == (1, len(levels), len(drawn) + 2, 1, 1)
    assert latents.min() >= -1 and latents.max() <= 1
    assert torch.equal(fsq.latents_to_indices(latents), indices)


@settings(max_examples=30)
@given(levels=levels_strategy, scale=st.floats(0.01, 10.0))
def test_every_latent_is_quantized_to_a_code(levels: tuple[int, ...], scale: float) -> None:
    fsq = FSQ(levels)
    quantized = fsq(scale * torch.randn(1, len(levels), 2, 3, 3), sample=False, with_terms=False)
    assert quantized.indices.dtype == torch.int64
    assert quantized.indices.min() >= 0 and quantized.indices.max() < math.prod(levels)
    torch.testing.assert_close(fsq.indices_to_latents(quantized.indices), quantized.latents, rtol=0, atol=1e-6)


def test_every_code_can_be_reached() -> None:
    levels = (8, 5, 2)
    values = torch.linspace(-6, 6, 401)
    for channel, level in enumerate(levels):
        z = torch.zeros(1, 3, 1, 1, 401)
        z[0, channel, 0, 0] = values
        latents = FSQ(levels)(z, sample=False, with_terms=False).latents[0, channel]
        assert latents.unique().numel() == level


@pytest.mark.parametrize("name", LEVELS)
def test_the_first_channel_is_the_least_significant_digit(name: str) -> None:
    levels = LEVELS[name]
    indices = torch.arange(math.prod(levels)).view(1, -1, 1, 1)
    latents = FSQ(levels).indices_to_latents(indices)[0, :, :, 0, 0].T
    torch.testing.assert_close(latents.double(), codebook(levels), rtol=0, atol=1e-6)


def test_codes_do_not_depend_on_autocast() -> None:
    """In bfloat16, indices collapse."""
    z = golden_input(LEVELS["8x5"])
    plain = FSQ(LEVELS["8x5"])(z, sample=False, with_terms=True)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = FSQ(LEVELS["8x5"])(z, sample=False, with_terms=True)
    assert torch.equal(autocast.indices, plain.indices) and autocast.latents.dtype == torch.float32
    assert all(torch.equal(autocast.terms[name], plain.terms[name]) for name in plain.terms)


def test_the_entropy_term_rewards_certain_and_diverse_tokens() -> None:
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).T.reshape(1, 2, 1, 2, 2)
    entropy = {
        "spread": terms(corners, (4, 4))["entropy"].item(),
        "alike": terms(torch.ones_like(corners), (4, 4))["entropy"].item(),
        "undecided": terms(torch.zeros_like(corners), (4, 4))["entropy"].item(),
    }
    assert entropy == pytest.approx({"spread": -math.log(4), "alike": 0.0, "undecided": 0.0}, abs=1e-3)


def test_fsq_terms_are_unweighted_scalars_by_name() -> None:
    z = golden_input(LEVELS["mixed"]).movedim(1, -1)
    result = fsq_terms(z, z.round(), LEVELS["mixed"])
    assert set(result) == {"entropy", "commitment"} and all(value.ndim == 0 for value in result.values())
