"""The training objective: reconstruction, perception, regularizers, and a discriminator against the tokenizer."""

from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.objective.config import ObjectiveConfig
from vidtok_plugin.tokenizer.objective.objective import Objective

__all__ = ["Objective", "ObjectiveConfig", "frame_psnr"]
