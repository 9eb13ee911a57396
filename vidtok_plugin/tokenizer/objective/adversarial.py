"""The adversarial losses: generator and discriminator against each other, and what keeps them in balance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok_plugin.common.distributed import mean_over_processes

LARGEST_ADAPTIVE_WEIGHT = 1e4


def generator_adversarial(fake: Tensor) -> Tensor:
    """The generator's non-saturating loss; fake: logits (n, 1, ...), averaged over each item first."""
    return F.softplus(-fake.float().flatten(1).mean(1)).mean()


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """What makes the adversarial loss's gradient at the generator's last weight as long as that of the `nll`.

    From this process's gradients alone, as published (VQGAN, arXiv 2012.09841, equation 7).
    """
    (of_nll,) = torch.autograd.grad(nll, last_weight, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    ratio = of_nll.float().norm() / (of_adversarial.float().norm() + 1e-4)
    return ratio.clamp(0.0, LARGEST_ADAPTIVE_WEIGHT).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits of real and of reconstructed video."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


class LeCAM(nn.Module):
    """Keeps logits from running away (arXiv 2104.03310): near the moving averages of the other side's.

    The averages are of all processes' logits, start from 0, and are part of the state_dict, so that a resumed run goes
    on as it was.
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
        """Takes in a batch's logits, of the same number in every process."""
        means = mean_over_processes(torch.stack([real.float().mean(), fake.float().mean()]))
        for average, mean in zip((self.real, self.fake), means, strict=True):
            average.mul_(self.decay).add_(mean, alpha=1 - self.decay)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        # Copies: the buffers change in place before a later backward pass could ask for them.
        average_real, average_fake = self.real.clone(), self.fake.clone()
        of_real = F.relu(real.float() - average_fake).square().mean()
        return of_real + F.relu(average_real - fake.float()).square().mean()
