"""The objective equals the published one value by value, and each loss trains only its own side."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from golden_weights import fill, golden_parameter
from metric_networks import golden_lpips
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_tokenizers import random_video, toy_tokenizer

from vidtok_plugin.tokenizer.model import Reconstruction
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.objective.adversarial import adaptive_weight
from vidtok_plugin.tokenizer.regularizers import KL

GOLDEN = load_file(GOLDEN_FILES / "training.safetensors")
REGULARIZERS = {"2d": {"entropy": 0.3}, "3d": {"kl": 123.0}}  # the golden regularizer's losses
DISC_START = 10
PLAIN = ObjectiveConfig(perceptual="none", learn_logvar=False, discriminator="none")
ADVERSARIAL = ObjectiveConfig(perceptual="none", disc_start=DISC_START)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def golden_discriminator(objective: Objective) -> Objective:
    """Fills the discriminator's parameters; running statistics are not parameters."""
    assert objective.discriminator is not None
    for name, parameter in objective.discriminator.named_parameters():
        parameter.data = golden_parameter(name, tuple(parameter.shape))
    return objective


class Toy:
    """The video of the golden objective, and a convolution that produces its reconstruction."""

    def __init__(self, frames: int = 8, size: int = 32) -> None:
        self.video = noise(7, 2, 3, frames, size, size).clamp(-1, 1)
        self.features = noise(8, 2, 8, frames, size, size)
        self.last: Any = fill(nn.Conv3d(8, 3, 3, padding=1))

    def out(self, **terms: float) -> Reconstruction:
        return output(self.last(self.features), **terms)


def output(reconstruction: Tensor, **terms: float) -> Reconstruction:
    values = {name: torch.tensor(value) for name, value in terms.items()}
    return Reconstruction(reconstruction=reconstruction, latents=reconstruction, indices=None, regularizer_terms=values)


# The published values


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_both_losses_and_their_terms_equal_the_published_ones(kind: Literal["2d", "3d"]) -> None:
    """A step before `disc_start` and one after it, in sequence because LeCAM's averages carry over."""

    def check(ours: Tensor, key: str) -> None:
        golden = GOLDEN[f"objective.{kind}.step{step}.{key}"][0]
        torch.testing.assert_close(ours.detach(), golden, rtol=1e-5, atol=0)

    cfg = ObjectiveConfig(discriminator=kind, disc_start=DISC_START, entropy_weight=1.0, entropy_annealing_steps=0)
    objective, toy = golden_discriminator(Objective(cfg, lpips=golden_lpips())), Toy()
    for step in (0, 20):
        out = toy.out(**REGULARIZERS[kind])
        loss, terms = objective.generator_loss(toy.video, out, step, toy.last.weight)
        check(loss, "generator.loss")
        check(terms["nll"], "generator.nll_loss")
        check(terms["lpips"], "generator.p_loss")
        check(terms["l1"] + terms["lpips"], "generator.rec_loss")
        if step < DISC_START:  # the original computes them too, and multiplies them by 0
            assert not {"g_loss", "disc_weight"} & set(terms)
            adversarial = objective.generator_adversarial(out.reconstruction)
            weight = cfg.disc_weight * adaptive_weight(loss, adversarial, toy.last.weight)
            terms |= {"g_loss": adversarial, "disc_weight": weight}
        check(terms["g_loss"], "generator.g_loss")
        check(terms["disc_weight"], "generator.d_weight")
        loss_or_none, terms = objective.discriminator_loss(toy.video, out.reconstruction, step)
        check(terms["hinge"], "discriminator.hinge_loss")
        check(terms["lecam"], "discriminator.lecam_loss")
        check(torch.zeros(()) if loss_or_none is None else loss_or_none, "discriminator.loss")


# Reconstruction and regularizers


def test_the_reconstruction_error_is_summed_over_a_frame() -> None:
    """With everything else turned off, the objective is L1, L2 and the regularizer's terms."""
    video, guess = random_video(3, b=2), random_video(3, b=2, seed=1)
    cfg = ObjectiveConfig(l1_weight=1.0, l2_weight=0.5, perceptual="none", learn_logvar=False, discriminator="none")
    objective = Objective(cfg)
    loss, terms = objective.generator_loss(video, output(guess, entropy=2.0, commitment=0.5), 1000, guess)
    error = (video - guess).float()
    frames = 2 * 3
    nll = (error.abs().sum() + 0.5 * error.square().sum()) / frames
    torch.testing.assert_close(loss, nll + 0.1 * 2 * 2.0 + 0.25 * 0.5)
    assert terms == {
        "l1": pytest.approx(error.abs().mean().item()),
        "l2": pytest.approx(error.square().mean().item()),
        "nll": pytest.approx(nll.item()),
        "entropy": 2.0,
        "commitment": 0.5,
    }
    assert not objective.state_dict() and objective.discriminator_loss(video, guess, 10**9) == (None, {})


def test_lpips_is_added_at_every_element_of_its_frame() -> None:
    cfg = ObjectiveConfig(perceptual_weight=3.0, learn_logvar=False, discriminator="none")
    toy = Toy(frames=2, size=16)
    with torch.no_grad():
        loss, _ = Objective(cfg, lpips=golden_lpips()).generator_loss(toy.video, toy.out(), 0, toy.last.weight)
        made = toy.out().reconstruction
        expected = []
        for clip, reconstruction in zip(toy.video, made, strict=True):
            for t in range(2):
                lpips = golden_lpips()(clip[None, :, t], reconstruction[None, :, t])
                expected.append(((clip[:, t] - reconstruction[:, t]).abs() + 3.0 * lpips).sum())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=0)


def test_logvar_learns_the_log_of_the_mean_error() -> None:
    """The gradient of `sum(error / exp(v) + v)` is the count minus `sum(error) / exp(v)`: 0 at the log of the mean."""
    video, guess = random_video(2).float(), random_video(2, seed=1).float()
    objective = Objective(ObjectiveConfig(perceptual="none", discriminator="none"))
    assert objective.logvar.item() == 0
    elements, error = 3 * 8 * 16, (video - guess).abs().mean().item()
    for value in (0.0, 0.7, math.log(error)):
        objective.logvar.data.fill_(value)
        objective.logvar.grad = None
        loss, terms = objective.generator_loss(video, output(guess), 0, guess)
        loss.backward()
        assert loss.item() == pytest.approx(elements * (error / math.exp(value) + value), rel=1e-5)
        gradient = elements * (1 - error / math.exp(value))
        assert objective.logvar.grad.item() == pytest.approx(gradient, rel=1e-5, abs=1e-3)
        assert terms["logvar"].item() == pytest.approx(value)


def test_the_entropy_weight_falls_linearly_to_its_final_value() -> None:
    cfg = ObjectiveConfig()
    weights = [cfg.regularizer_weight("entropy", step) for step in (0, 500, 1000, 2000, 9000)]
    assert weights == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.1])
    assert cfg.regularizer_weight("commitment", 0) == 0.25 and cfg.regularizer_weight("kl", 0) == 1e-6


def test_kl_is_the_divergence_from_a_standard_gaussian_for_each_clip() -> None:
    z = torch.cat([noise(1, 2, 4, 3, 2, 2), 3 * noise(2, 2, 4, 3, 2, 2)], dim=1).requires_grad_()
    terms = KL()(z, sample=True, with_terms=True).terms
    mean, log_variance = z.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(terms["kl"], divergence)
    out = Reconstruction(reconstruction=mean, latents=mean, indices=None, regularizer_terms=terms)
    loss, _ = Objective(PLAIN).generator_loss(mean.detach(), out, 0, mean)
    torch.testing.assert_close(loss, 1e-6 * divergence)


# The discriminator


def test_the_adaptive_weight_is_the_clamped_ratio_of_gradient_norms() -> None:
    last = torch.tensor([1.0, -2.0], requires_grad=True)
    nll, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 0.5])).sum()
    weight = adaptive_weight(nll, adversarial, last)
    assert weight.item() == pytest.approx(5 / (0.5 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight(nll, 1e-9 * adversarial, last).item() == 1e4
    assert adaptive_weight(0 * nll, adversarial, last).item() == 0


def test_the_adversarial_gradient_at_the_last_layer_has_a_fifth_of_the_reconstruction_gradients_norm() -> None:
    objective, toy = golden_discriminator(Objective(ADVERSARIAL)), Toy(frames=4, size=16)
    objective.discriminator.main[11].bias.data -= 100.0  # certain that it is not real
    objective.discriminator.main[11].weight.data *= 1e4  # and steep, or the weight would be clamped
    loss, terms = objective.generator_loss(toy.video, toy.out(), DISC_START, toy.last.weight)
    (both,) = torch.autograd.grad(loss, toy.last.weight)
    nll, _ = objective.generator_loss(toy.video, toy.out(), DISC_START - 1, toy.last.weight)
    (nll_gradient,) = torch.autograd.grad(nll, toy.last.weight)
    assert 0 < terms["disc_weight"] < 1000
    assert ((both - nll_gradient).norm() / nll_gradient.norm()).item() == pytest.approx(0.2, rel=1e-3)
    torch.testing.assert_close(loss - nll, terms["disc_weight"] * terms["g_loss"], rtol=1e-4, atol=0)


def test_before_disc_start_only_lecam_averages_change() -> None:
    objective, toy = Objective(ADVERSARIAL), Toy(frames=4, size=16)
    loss, terms = objective.discriminator_loss(toy.video, toy.out().reconstruction, DISC_START - 1)
    assert loss is None and not any(term.requires_grad for term in terms.values())
    assert objective.lecam.real.item() == pytest.approx(0.001 * terms["logits_real"].item(), rel=1e-4) != 0
    assert objective.lecam.fake.item() == pytest.approx(0.001 * terms["logits_fake"].item(), rel=1e-4) != 0
    loss, terms = objective.discriminator_loss(toy.video, toy.out().reconstruction, DISC_START)
    torch.testing.assert_close(loss.detach(), terms["hinge"] + 0.005 * terms["lecam"])
    assert loss.requires_grad


def test_each_loss_trains_all_of_its_own_side_and_nothing_else() -> None:
    """The adversarial loss passes through the discriminator, which must not receive its gradients."""
    tokenizer, objective = toy_tokenizer("vidtok_kl_causal_488_4chn_v1_1").float().train(), Objective(ADVERSARIAL)
    video = random_video(5, h=16).float()
    out = tokenizer(video)
    loss, _ = objective.generator_loss(video, out, DISC_START, tokenizer.decoder.last_weight)
    loss.backward()
    generator = {**dict(tokenizer.named_parameters()), "logvar": objective.logvar}
    discriminator = dict(objective.discriminator.named_parameters())
    assert [name for name, p in generator.items() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in discriminator.items() if p.grad is not None] == []
    before = {name: p.grad.clone() for name, p in generator.items()}
    loss, _ = objective.discriminator_loss(video, out.reconstruction, DISC_START)
    loss.backward()
    assert all(torch.equal(p.grad, before[name]) for name, p in generator.items())
    assert [name for name, p in discriminator.items() if p.grad is None or not p.grad.any()] == []
    assert len(generator) + len(discriminator) == len([*tokenizer.parameters(), *objective.parameters()])


@pytest.mark.parametrize("preset", ["vidtok_kl_causal_488_4chn", "vidtok_kl_noncausal_488_4chn"])
def test_the_last_weight_belongs_to_the_decoders_last_convolution(preset: str) -> None:
    decoder = toy_tokenizer(preset).decoder
    names = [name for name, parameter in decoder.named_parameters() if parameter is decoder.last_weight]
    assert names == (["conv_out.conv.weight"] if "_causal" in preset else ["conv_out.weight"])


def test_state_dict_names_are_those_of_published_checkpoints() -> None:
    """Behind `loss.`. LeCAM's averages, which the original loses on resumption, are additional."""
    objective = Objective(ObjectiveConfig(), lpips=golden_lpips())
    convs = [f"main.{index}.weight" for index in (0, 2, 5, 8, 11)] + ["main.0.bias", "main.11.bias"]
    values = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = [f"main.{index}.{value}" for index in (3, 6, 9) for value in values]
    discriminator = {f"discriminator.{name}" for name in (*convs, *norms)}
    assert set(objective.state_dict()) == {"logvar", "lecam.real", "lecam.fake", *discriminator}
    assert objective.logvar.shape == ()


def test_losses_are_computed_in_float32_under_autocast() -> None:
    objective, toy = golden_discriminator(Objective(ADVERSARIAL, lpips=golden_lpips())), Toy(frames=4, size=16)

    def losses() -> tuple[Tensor, Tensor]:
        out = toy.out()
        generator, terms = objective.generator_loss(toy.video, out, DISC_START, toy.last.weight)
        discriminator, more = objective.discriminator_loss(toy.video, out.reconstruction, DISC_START)
        assert all(term.dtype == torch.float32 and term.isfinite() for term in (terms | more).values())
        return generator.detach(), discriminator.detach()

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses()
    assert all(loss.dtype == torch.float32 for loss in rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


def test_each_side_improves_by_training_on_its_loss() -> None:
    """Both losses have the right sign."""
    objective, toy = Objective(ADVERSARIAL), Toy(frames=4, size=16)
    discriminator_optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=1e-3)
    margins = []
    for _ in range(4):
        loss, terms = objective.discriminator_loss(toy.video, toy.out().reconstruction, DISC_START)
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        margins.append((terms["logits_real"] - terms["logits_fake"]).item())
    assert margins[-1] > margins[0] + 0.5
    generator_optimizer = torch.optim.SGD(toy.last.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        adversarial = objective.generator_adversarial(toy.out().reconstruction)
        generator_optimizer.zero_grad()
        adversarial.backward()
        generator_optimizer.step()
        losses.append(adversarial.item())
    assert losses[-1] < losses[0]


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1_weight": 0.0}, "l1_weight and l2_weight must not be negative, and one above 0, got 0.0 and 0.0"),
        ({"perceptual_weight": 0.0}, "perceptual_weight must be above 0, got 0.0; perceptual=none leaves it out"),
        ({"disc_weight": -1.0}, "disc_weight must be above 0, got -1.0; discriminator=none leaves it out"),
        ({"disc_start": -1}, "disc_start must not be negative, got -1"),
        ({"lecam_decay": 1.0}, r"lecam_decay must be in \[0, 1\), got 1.0"),
        ({"kl_weight": -1e-6}, "kl_weight must not be negative, got -1e-06"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
