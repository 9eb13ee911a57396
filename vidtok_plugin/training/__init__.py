"""Training runs of the tokenizer and the world model: config, optimization, checkpoints and loading."""

from vidtok_plugin.training.checkpoints import last_checkpoint
from vidtok_plugin.training.config import RESERVED, RunConfig
from vidtok_plugin.training.runs import build_trainer, default_callbacks, fit, validate

__all__ = ["RESERVED", "RunConfig", "build_trainer", "fit", "last_checkpoint", "validate", "default_callbacks"]
