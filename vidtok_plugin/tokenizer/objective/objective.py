"""What a tokenizer is trained for: faithful, real-looking reconstruction, and latents as its regularizer wants them."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.tokenizer.model import Reconstruction
from vidtok_plugin.tokenizer.objective.adversarial import LeCAM, adaptive_weight, generator_adversarial, hinge
from vidtok_plugin.tokenizer.objective.config import ObjectiveConfig
from vidtok_plugin.tokenizer.objective.discriminators import Discriminator
from vidtok_plugin.tokenizer.objective.perceptual import PerceptualLoss

Parts = dict[str, Tensor]  # terms by name for the log: detached scalars, unweighted


class Objective(nn.Module):
    """The published objective of VidTok (arXiv 2412.13061): two losses of a batch, one after the other.

    The generator's optimizer trains the tokenizer and `logvar`, by `generator_loss`; the discriminator's trains
    `discriminator`, by `discriminator_loss`. Neither leaves gradients on the other's parameters. Steps count batches,
    from 0. Every process of a distributed run takes its own part of the batch, all of one size.
    """

    def __init__(self, cfg: ObjectiveConfig, *, lpips: LPIPS | None = None) -> None:
        """lpips: by default that of the config, loaded by `load` or at its first use."""
        super().__init__()
        self.cfg = cfg
        self.perceptual = PerceptualLoss(cfg.lpips_vgg, lpips) if cfg.perceptual == "lpips" else None
        self.logvar = nn.Parameter(torch.zeros(())) if cfg.learn_logvar else None
        self.discriminator = Discriminator(cfg.discriminator) if cfg.discriminator != "none" else None
        self.lecam = LeCAM(cfg.lecam_decay) if cfg.discriminator != "none" else None

    def load(self) -> None:
        """Loads LPIPS' weights, if the config has it, so that missing ones are an error before training starts.

        Raises:
            FileNotFoundError: they can't be had; the message says from where to get them, and how to do without.
        """
        if self.perceptual is not None:
            self.perceptual.load()

    def generator_loss(
        self, video: Tensor, out: Reconstruction, step: int, last_weight: Tensor
    ) -> tuple[Tensor, Parts]:
        """The tokenizer's loss of a batch, and its parts.

        video: the target (b, 3, t, h, w) in [-1, 1]; last_weight: of the decoder's last layer, where the adaptive
            weight compares gradients. The parts are l1, l2, lpips, nll, logvar and the regularizer's terms, and from
            `disc_start` on g_loss and disc_weight (what g_loss is multiplied by), as far as the config has them.
        """
        nll, parts = self.reconstruction_nll(video, out.reconstruction)
        loss = nll
        if self.discriminator is not None and self.cfg.discriminating(step):
            adversarial = self.generator_adversarial(out.reconstruction)
            weight = self.cfg.disc_weight * adaptive_weight(nll, adversarial, last_weight)
            loss = loss + weight * adversarial
            parts |= {"g_loss": adversarial.detach(), "disc_weight": weight}
        for name, term in (out.regularizer_terms or {}).items():
            loss = loss + self.cfg.regularizer_weight(name, step) * term
            parts[name] = term.detach()
        return loss, parts

    def reconstruction_nll(self, video: Tensor, reconstruction: Tensor) -> tuple[Tensor, Parts]:
        """The reconstruction error as a negative log likelihood of scale `exp(logvar)`, summed over a frame."""
        difference = (video - reconstruction).float()
        l1, l2 = difference.abs().mean(), difference.square().mean()
        error = self.cfg.l1_weight * l1 + self.cfg.l2_weight * l2
        parts = {"l1": l1.detach(), "l2": l2.detach()}
        if self.perceptual is not None:
            frames, made = (rearrange(x, "b c t h w -> (b t) c h w") for x in (video, reconstruction))
            lpips = self.perceptual(frames, made).mean()
            error = error + self.cfg.perceptual_weight * lpips
            parts["lpips"] = lpips.detach()
        # A frame's LPIPS counts at each of its elements, so that the mean over all elements holds the frames' mean.
        if self.logvar is not None:
            error = error / self.logvar.exp() + self.logvar
            parts["logvar"] = self.logvar.detach().clone()
        nll = video[0, :, 0].numel() * error
        return nll, parts | {"nll": nll.detach()}

    def generator_adversarial(self, reconstruction: Tensor) -> Tensor:
        """How far the discriminator is from taking the reconstruction for real; no gradients for its own weights."""
        assert self.discriminator is not None
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return generator_adversarial(functional_call(self.discriminator, fixed, (reconstruction,)))

    def discriminator_loss(self, video: Tensor, reconstruction: Tensor, step: int) -> tuple[Tensor | None, Parts]:
        """The discriminator's loss of a batch, and its parts: hinge, lecam, and the mean logits of both sides.

        The loss is None before `disc_start`: the discriminator's optimizer must not step then. (The original multiplies
        the loss by 0 and steps: its weights stay as they are, but Adam counts the steps and so begins with its bias
        correction gone, and a weight decay would shrink them.) LeCAM's averages do move then, as published.
        """
        if self.discriminator is None or self.lecam is None:
            return None, {}
        active = self.cfg.discriminating(step)
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            real, fake = self.discriminator(video), self.discriminator(reconstruction.detach())
            self.lecam.update(real.detach(), fake.detach())
            of_hinge, of_lecam = hinge(real, fake), self.lecam.penalty(real, fake)
            loss = of_hinge + self.cfg.lecam_weight * of_lecam
        parts = {"hinge": of_hinge, "lecam": of_lecam, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss if active else None, {name: part.detach().float() for name, part in parts.items()}
