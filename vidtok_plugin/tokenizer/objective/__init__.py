"""The training objective: reconstruction, LPIPS, regularizers and a discriminator."""

from vidtok_plugin.tokenizer.objective.config import ObjectiveConfig
from vidtok_plugin.tokenizer.objective.objective import Objective

__all__ = ["Objective", "ObjectiveConfig"]
