"""What a tokenizer is trained for: faithful reconstruction, and latents as its regularizer wants them."""

from dataclasses import dataclass

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from vidtok_plugin.tokenizer.model import Reconstruction


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the objective's terms (`vidtok.md`, "Objective", "FSQ" and "KL"); the defaults are the published.

    The reconstruction error is summed over the elements and divided by the number of frames.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    entropy_weight: float = 0.1
    entropy_annealing_factor: float = 3.0  # the entropy's weight falls from so many times its own ...
    entropy_annealing_steps: int = 2000  # ... over the first so many batches
    commitment_weight: float = 0.25
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.l1_weight, self.l2_weight) < 0 or self.l1_weight + self.l2_weight == 0:
            raise ValueError("ObjectiveConfig: l1_weight and l2_weight must not be negative, and one above 0.")

    def regularizer_weight(self, name: str, step: int) -> float:
        """Weight of a regularizer's term at a step (from 0)."""
        if name != "entropy":
            return {"commitment": self.commitment_weight, "kl": self.kl_weight}[name]
        share = 1 - min(1.0, step / self.entropy_annealing_steps) if self.entropy_annealing_steps else 0.0
        return self.entropy_weight * (1 + (self.entropy_annealing_factor - 1) * share)


def objective(cfg: ObjectiveConfig, video: Tensor, out: Reconstruction, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts by name for the log, unweighted.

    video: the target (b, 3, t, h, w) in [-1, 1]; step: the number of batches before this one.
    """
    difference = (video - out.reconstruction).float()
    parts = {"l1": difference.abs().mean(), "l2": difference.square().mean()}
    elements_per_frame = video[0, :, 0].numel()
    loss = elements_per_frame * (cfg.l1_weight * parts["l1"] + cfg.l2_weight * parts["l2"])
    for name, term in (out.regularizer_terms or {}).items():
        loss = loss + cfg.regularizer_weight(name, step) * term
        parts[name] = term
    return loss, {name: part.detach() for name, part in parts.items()}


def frame_psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """PSNR in dB of each frame: (b, 3, t, h, w) twice, in [-1, 1] -> (b, t); the reconstruction is clamped."""
    return peak_signal_noise_ratio(
        reconstruction.clamp(-1, 1).float(), video.float(), data_range=2.0, dim=(1, 3, 4), reduction="none"
    )
