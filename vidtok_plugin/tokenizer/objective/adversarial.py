"""The adversarial losses of generator and discriminator, their adaptive weight, and LeCAM regularization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok_plugin.common.distributed import mean_over_processes

MAX_ADAPTIVE_WEIGHT = 1e4


def generator_adversarial(fake: Tensor) -> Tensor:
    """The generator's non-saturating loss. fake: logits (n, 1, ...), which are averaged per item first."""
    return F.softplus(-fake.float().flatten(1).mean(1)).mean()


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """The weight that scales the adversarial gradient at the generator's last weight to the norm of the `nll` gradient.

    Computed per process, as published (VQGAN, arXiv 2012.09841, equation 7).
    """
    (grad_nll,) = torch.autograd.grad(nll, last_weight, retain_graph=True)
    (grad_adversarial,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    ratio = grad_nll.float().norm() / (grad_adversarial.float().norm() + 1e-4)
    return ratio.clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss on its logits of real and reconstructed video."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


class LeCAM(nn.Module):
    """LeCAM regularization (arXiv 2104.03310): keeps logits near the moving average of the other side's logits.

    The averages cover all processes and start at 0. They are part of the state_dict, so that runs resume exactly.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Updates the averages with a batch's logits; every process must have the same number."""
        means = mean_over_processes(torch.stack([real.float().mean(), fake.float().mean()]))
        for average, mean in zip((self.real, self.fake), means, strict=True):
            average.mul_(self.decay).add_(mean, alpha=1 - self.decay)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        # Copies: the buffers may change in place before the backward pass reads them.
        average_real, average_fake = self.real.clone(), self.fake.clone()
        penalty_real = F.relu(real.float() - average_fake).square().mean()
        return penalty_real + F.relu(average_real - fake.float()).square().mean()
