"""The discriminators and their losses: the published logits, and each formula computed by hand."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import golden_parameter
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor, nn

from vidtok_plugin.tokenizer.objective.adversarial import LeCAM, generator_adversarial, hinge
from vidtok_plugin.tokenizer.objective.discriminators import Discriminator

GOLDEN = load_file(GOLDEN_FILES / "training.safetensors")
Kind = Literal["2d", "3d"]
INPUTS: dict[Kind, tuple[int, tuple[int, ...]]] = {"2d": (3, (4, 3, 1, 32, 32)), "3d": (4, (2, 3, 8, 32, 32))}


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_logits_equal_the_published_ones(kind: Kind) -> None:
    discriminator, (seed, shape) = Discriminator(kind), INPUTS[kind]
    for name, parameter in discriminator.named_parameters():
        parameter.data = golden_parameter(name, tuple(parameter.shape))
    video = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()
    golden = GOLDEN[f"discriminator{kind}.logits"]
    torch.testing.assert_close(discriminator(video), golden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_weights_are_initialized_as_published(kind: Kind) -> None:
    for layer in Discriminator(kind).main:
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            count = layer.weight.numel()
            assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(count))
            assert abs(layer.weight.mean().item()) < 5 * 0.02 / math.sqrt(count)
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert abs(layer.weight.mean().item() - 1) < 0.01 and not layer.bias.any()


def test_2d_judges_single_frames_and_3d_whole_clips() -> None:
    video = torch.randn(2, 3, 5, 32, 32)
    assert Discriminator("2d")(video).shape == (10, 1, 2, 2)
    assert Discriminator("3d")(video).shape == (2, 1, 2, 4, 4)
    frames = Discriminator("2d").eval()
    still = video.clone()
    still[:, :, 1:] = 0
    torch.testing.assert_close(frames(video)[0], frames(still)[0])
    clips = Discriminator("3d").eval()
    assert (clips(video)[0] - clips(still)[0]).abs().max() > 1e-4


def test_frames_too_small_for_the_2d_discriminator_are_an_error() -> None:
    assert Discriminator("2d")(torch.zeros(2, 3, 1, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"at least 24 in 2d, got \(23, 24\); use larger frames, discriminator=3d"):
        Discriminator("2d")(torch.zeros(2, 3, 1, 23, 24))


def test_the_hinge_loss_has_a_margin_of_one_on_both_sides() -> None:
    real, fake = torch.tensor([[0.5, 3.0]]), torch.tensor([[-2.0, 0.25]])
    assert hinge(real, fake).item() == pytest.approx(0.5 * ((0.5 + 0) / 2 + (0 + 1.25) / 2))


def test_the_generator_loss_averages_the_logits_of_an_item_first() -> None:
    logits = torch.tensor([[[[4.0, -2.0]]], [[[0.0, -6.0]]]])  # means 1 and -3
    expected = (F.softplus(torch.tensor(-1.0)) + F.softplus(torch.tensor(3.0))) / 2
    torch.testing.assert_close(generator_adversarial(logits), expected)


def test_lecam_pulls_logits_to_the_moving_average_of_the_other_side() -> None:
    lecam = LeCAM(0.9)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-4.0, 2.0])
    lecam.update(real, fake)
    lecam.update(real, fake)
    assert lecam.real.item() == pytest.approx(0.19 * 2) and lecam.fake.item() == pytest.approx(0.19 * -1)
    expected = ((1 + 0.19) ** 2 + (3 + 0.19) ** 2) / 2 + ((0.38 + 4) ** 2 + 0) / 2
    assert lecam.penalty(real, fake).item() == pytest.approx(expected)


def test_lecam_averages_are_saved_and_have_no_gradient() -> None:
    lecam, again = LeCAM(0.5), LeCAM(0.5)
    real: Tensor = torch.randn(3, requires_grad=True)
    lecam.update(real, -real)
    penalty = lecam.penalty(real, -real)
    lecam.update(real, -real)  # as by the next micro-batch, before this backward pass
    penalty.backward()
    assert real.grad is not None and real.grad.isfinite().all()
    again.load_state_dict(lecam.state_dict())
    assert torch.equal(again.real, lecam.real) and not lecam.real.requires_grad and lecam.real != 0
