"""The objective is the published one, number by number, and neither side's loss touches the other's parameters."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from golden_weights import fill, golden_parameter
from metric_networks import golden_lpips
from safetensors.torch import load_file
from torch import Tensor, nn

from vidtok_plugin.tokenizer.model import Reconstruction
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.objective.adversarial import adaptive_weight

GOLDEN = load_file(Path(__file__).parent / "data" / "golden" / "training.safetensors")
REGULARIZERS = {"2d": {"entropy": 0.3}, "3d": {"kl": 123.0}}  # the golden regularizer's losses
DISC_START = 10
PLAIN = ObjectiveConfig(perceptual="none", learn_logvar=False, discriminator="none")
SMALL = ObjectiveConfig(perceptual="none", discriminator="3d", disc_start=DISC_START)
Kind = Literal["2d", "3d"]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def close(ours: Tensor, key: str) -> None:
    torch.testing.assert_close(ours.detach(), GOLDEN[f"objective.{key}"][0], rtol=1e-5, atol=0)


def fill_discriminator(objective: Objective) -> Objective:
    assert objective.discriminator is not None
    weights = {name: golden_parameter(name, tuple(p.shape)) for name, p in objective.discriminator.named_parameters()}
    objective.discriminator.load_state_dict(weights, strict=False)  # the running statistics are no weights
    return objective


class Toy:
    """The golden objective's video, and a last layer of a decoder that makes the reconstruction."""

    def __init__(self) -> None:
        self.video = noise(7, 2, 3, 8, 32, 32).clamp(-1, 1)
        self.features = noise(8, 2, 8, 8, 32, 32).requires_grad_()
        self.layer = fill(nn.Conv3d(8, 3, 3, padding=1))

    def out(self, **terms: float) -> Reconstruction:
        reconstruction = self.layer(self.features)
        values = {name: torch.tensor(value) for name, value in terms.items()}
        return Reconstruction(
            reconstruction=reconstruction, latents=reconstruction, indices=None, regularizer_terms=values
        )


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_both_losses_and_all_their_parts_are_the_published_ones(kind: Kind) -> None:
    """Before disc_start and after it, one step after the other, since LeCAM's averages go on."""
    cfg = ObjectiveConfig(discriminator=kind, disc_start=DISC_START, entropy_weight=1.0, entropy_annealing_steps=0)
    objective, toy = fill_discriminator(Objective(cfg, lpips=golden_lpips())), Toy()
    for step in (0, 20):
        key, out = f"{kind}.step{step}", toy.out(**REGULARIZERS[kind])
        loss, parts = objective.generator_loss(toy.video, out, step, toy.layer.weight)
        close(loss, f"{key}.generator.loss")
        close(parts["nll"], f"{key}.generator.nll_loss")
        close(parts["lpips"], f"{key}.generator.p_loss")
        close(parts["l1"] + parts["lpips"], f"{key}.generator.rec_loss")
        # The original computes these before disc_start too, and multiplies them by 0.
        nll, _ = objective.reconstruction_nll(toy.video, out.reconstruction)
        adversarial = objective.generator_adversarial(out.reconstruction)
        weight = cfg.disc_weight * adaptive_weight(nll, adversarial, toy.layer.weight)
        close(adversarial, f"{key}.generator.g_loss")
        close(weight, f"{key}.generator.d_weight")
        if step < DISC_START:
            assert not {"g_loss", "disc_weight"} & set(parts)
        else:
            assert torch.equal(parts["g_loss"], adversarial.detach()) and torch.equal(parts["disc_weight"], weight)
        loss, parts = objective.discriminator_loss(toy.video, out.reconstruction, step)
        close(parts["hinge"], f"{key}.discriminator.hinge_loss")
        close(parts["lecam"], f"{key}.discriminator.lecam_loss")
        close(torch.zeros(()) if loss is None else loss, f"{key}.discriminator.loss")
        assert (loss is None) == (step < DISC_START)
