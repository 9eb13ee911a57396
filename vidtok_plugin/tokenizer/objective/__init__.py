"""The training objective: reconstruction, perception, regularizers, and a discriminator against the tokenizer."""

from vidtok_plugin.tokenizer.objective.config import ObjectiveConfig
from vidtok_plugin.tokenizer.objective.objective import Objective
from vidtok_plugin.tokenizer.objective.psnr import frame_psnr

__all__ = ["Objective", "ObjectiveConfig", "frame_psnr"]
