"""The inputs of both kinds of prediction: a window of whole latent steps, or the next step of a rollout.

Shapes: b clips, T latent steps, H W rows and columns, n = H * W positions of a step, p values of a patch, f frames a
step, s components of a state, d width.
"""

from dataclasses import dataclass

from torch import Tensor

from world_model.inputs.embedding import Tables
from world_model.inputs.positions import InputTables
from world_model.transformer.transformer import DecodeBlocks


@dataclass(frozen=True, kw_only=True)
class WindowInputs:
    """A window of latent steps, with the conditioning of each step from everything but its own tokens."""

    tokens: Tensor  # (b, T, H, W[, p])
    conditioning: Tensor  # (b, T, n, d)
    tables: InputTables
    past_state: Tensor | None  # (b, T, f, s), normalized states of the step before each; None for a model without


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The conditioning of the next latent step, and the tables and blocks for drawing it."""

    conditioning: Tensor  # (b, n, d)
    neighbor_codes: Tensor | None  # (b, n, c), codes of the step before that may be copied
    tables: InputTables
    head_tables: Tables
    past_state: Tensor | None  # (b, f, s), normalized states of the step before
    blocks: DecodeBlocks | None  # of the cache that the step goes into; None: made at each call
