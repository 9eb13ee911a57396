"""Training runs of the tokenizer and the world model: config, optimization, checkpoints and loading."""

from typing import TYPE_CHECKING

from vidtok_plugin.common.extras import need_training
from vidtok_plugin.common.lazy_package import make_lazy

if TYPE_CHECKING:
    from vidtok_plugin.training.checkpoints import last_checkpoint as last_checkpoint
    from vidtok_plugin.training.config import RESERVED as RESERVED
    from vidtok_plugin.training.config import RunConfig as RunConfig
    from vidtok_plugin.training.runs import build_trainer as build_trainer
    from vidtok_plugin.training.runs import default_callbacks as default_callbacks
    from vidtok_plugin.training.runs import fit as fit
    from vidtok_plugin.training.runs import validate as validate

need_training()

__all__ = make_lazy(
    __name__,
    {
        "RESERVED": "vidtok_plugin.training.config",
        "RunConfig": "vidtok_plugin.training.config",
        "build_trainer": "vidtok_plugin.training.runs",
        "default_callbacks": "vidtok_plugin.training.runs",
        "fit": "vidtok_plugin.training.runs",
        "last_checkpoint": "vidtok_plugin.training.checkpoints",
        "validate": "vidtok_plugin.training.runs",
    },
)
