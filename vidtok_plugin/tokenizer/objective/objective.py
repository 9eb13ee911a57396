"""Objective: the losses of the tokenizer (generator) and of the discriminator on a batch."""

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
from vidtok_plugin.tokenizer.objective.stillness import stillness

Terms = dict[str, Tensor]  # by name, for the log: detached and unweighted scalars


class Objective(nn.Module):
    """The published objective of VidTok (arXiv 2412.13061): two losses per batch, one after the other.

    `generator_loss` trains the tokenizer and `logvar`, `discriminator_loss` trains `discriminator`. Neither leaves
    gradients on the parameters of the other. Steps count batches from 0. In a distributed run all processes must have
    batches of the same size.
    """

    def __init__(self, cfg: ObjectiveConfig, *, lpips: LPIPS | None = None) -> None:
        """lpips: by default that of the config, loaded by `load` or at first use."""
        super().__init__()
        self.cfg = cfg
        self.perceptual = PerceptualLoss(cfg.lpips_vgg, lpips) if cfg.perceptual == "lpips" else None
        self.logvar = nn.Parameter(torch.zeros(())) if cfg.learn_logvar else None
        self.discriminator = Discriminator(cfg.discriminator) if cfg.discriminator != "none" else None
        self.lecam = LeCAM(cfg.lecam_decay) if cfg.discriminator != "none" else None

    def load(self) -> None:
        """Loads the weights of LPIPS if the config uses it, so that missing weights fail before training starts.

        Raises:
            FileNotFoundError: the weights are missing; the message says where to get them and how to train without.
        """
        if self.perceptual is not None:
            self.perceptual.load()

    def generator_loss(
        self, video: Tensor, out: Reconstruction, step: int, last_weight: Tensor
    ) -> tuple[Tensor, Terms]:
        """The tokenizer's loss on a batch, and its terms.

        video: the target (b, 3, t, h, w) in [-1, 1].
        last_weight: the weight of the decoder's last layer, at which the adaptive weight compares gradients.

        The terms, as far as the config has them: l1, l2, lpips, nll, logvar, those of the regularizer, stillness, and
        from `disc_start` on g_loss and disc_weight, the factor of g_loss.
        """
        nll, terms = self.reconstruction_nll(video, out.reconstruction)
        loss = nll
        if self.discriminator is not None and self.cfg.discriminating(step):
            adversarial = self.generator_adversarial(out.reconstruction)
            weight = self.cfg.disc_weight * adaptive_weight(nll, adversarial, last_weight)
            loss = loss + weight * adversarial
            terms |= {"g_loss": adversarial.detach(), "disc_weight": weight}
        for name, term in (out.regularizer_terms or {}).items():
            loss = loss + self.cfg.regularizer_weight(name, step) * term
            terms[name] = term.detach()
        if self.cfg.still_weight:
            changes = stillness(video, out.latents)
            loss = loss + self.cfg.still_weight * changes
            terms["stillness"] = changes.detach()
        return loss, terms

    def reconstruction_nll(self, video: Tensor, reconstruction: Tensor) -> tuple[Tensor, Terms]:
        """The reconstruction error as a negative log likelihood with scale `exp(logvar)`, summed over a frame."""
        difference = (video - reconstruction).float()
        l1, l2 = difference.abs().mean(), difference.square().mean()
        error = self.cfg.l1_weight * l1 + self.cfg.l2_weight * l2
        terms = {"l1": l1.detach(), "l2": l2.detach()}
        if self.perceptual is not None:
            frames, made = (rearrange(x, "b c t h w -> (b t) c h w") for x in (video, reconstruction))
            lpips = self.perceptual(frames, made).mean()
            error = error + self.cfg.perceptual_weight * lpips
            terms["lpips"] = lpips.detach()
        # LPIPS is added at each element of its frame; its mean over all elements is its mean over frames.
        if self.logvar is not None:
            error = error / self.logvar.exp() + self.logvar
            terms["logvar"] = self.logvar.detach().clone()
        nll = video[0, :, 0].numel() * error
        return nll, terms | {"nll": nll.detach()}

    def generator_adversarial(self, reconstruction: Tensor) -> Tensor:
        """The adversarial loss of a reconstruction, without gradients for the discriminator's weights."""
        assert self.discriminator is not None
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return generator_adversarial(functional_call(self.discriminator, fixed, (reconstruction,)))

    def discriminator_loss(self, video: Tensor, reconstruction: Tensor, step: int) -> tuple[Tensor | None, Terms]:
        """The discriminator's loss on a batch, and its terms: hinge, lecam, and the mean logits of real and fake.

        The loss is None before `disc_start`; the discriminator's optimizer must not step then. (The original multiplies
        the loss by 0 and steps. That leaves the weights unchanged, but Adam counts the steps, which uses up its bias
        correction, and weight decay would shrink the weights.) LeCAM's averages are updated before `disc_start` as
        well, as published.
        """
        if self.discriminator is None or self.lecam is None:
            return None, {}
        active = self.cfg.discriminating(step)
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            real, fake = self.discriminator(video), self.discriminator(reconstruction.detach())
            self.lecam.update(real.detach(), fake.detach())
            hinge_loss, lecam = hinge(real, fake), self.lecam.penalty(real, fake)
            loss = hinge_loss + self.cfg.lecam_weight * lecam
        terms = {"hinge": hinge_loss, "lecam": lecam, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss if active else None, {name: term.detach().float() for name, term in terms.items()}
