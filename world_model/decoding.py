"""The order in which a latent step's tokens are drawn, and how many at once.

Raster order draws one token after another. In diagonal order (Ye et al., "Fast Autoregressive Video Generation with
Diagonal Decoding", arXiv 2503.14070) each row starts `diagonal_offset` columns after the row above it. A step then
takes W + (H - 1) * diagonal_offset calls, and a token does not see those to its right in the rows above that are not
drawn yet. An offset of W is raster order. Causal models support both orders without further training. Masked models
draw all tokens `steps` times and each time keep the most confident ones (MaskGIT, Chang et al., arXiv 2202.04200).

Shapes: H W rows and columns, n = H * W positions of a step, m of a group.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.precision import Precision
from world_model.architecture import Prediction, WorldModelConfig

Order = Literal["raster", "diagonal", "masked"]
Context = Literal["exact", "rolling"]
DecodingPrecision = Literal["auto", "float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a rollout draws a step's tokens. `order` None is raster for causal models and masked for masked ones.

    When an `exact` context is full, the oldest `context_shift` latent steps are dropped and the rest re-prefilled; None
    drops a quarter of the context. A `rolling` one drops its oldest step and keeps the keys and values of the others,
    which still tell of dropped ones: every step sees the `max_steps - 1` before it and takes the same time. None rolls
    for a model that was trained on windows longer than its context, unless a `context_shift` is given.

    With `draft_tokens`, raster order draws the same tokens in fewer calls: each reads that many guesses, of which the
    right ones stay. 16 is good for a few rollouts of a trained model of codes. With `compiled`, every call of an order
    is the same compiled one, on CUDA a graph.

    With `precision` bfloat16, copies of the model and of the tokenizer's decoder compute in it; with auto, where the
    device is faster at it. Prompts are encoded in float32 in any case, and tokens drawn from their logits in it. In
    bfloat16 a row's tokens depend on the size of the batch, by which sums are rounded in other ways. With int8, a copy
    of the model has int8 weights, which is faster for one rollout on a CPU; frames are decoded in float32.

    Example:
        >>> Decoding(order="diagonal", diagonal_offset=2).order_for("causal")
        'diagonal'
    """

    RENAMED: ClassVar[dict[str, str]] = {"window": "diagonal_offset", "move": "context_shift"}

    order: Order | None = None
    diagonal_offset: int | None = None  # of diagonal order, in columns; None for 1
    steps: int | None = None  # of masked order, calls per latent step; None for 8
    choice_temperature: float | None = None  # of masked order: noise in the choice of tokens, annealed to 0; None for 1
    context: Context | None = None  # None: rolling for a model that knows it
    context_shift: int | None = None  # of an exact context
    draft_tokens: int | None = None  # of raster order: tokens that are guessed and checked in one call; None for none
    compiled: bool = False
    precision: DecodingPrecision = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, order in (("diagonal_offset", "diagonal"), ("steps", "masked"), ("choice_temperature", "masked")):
            value = getattr(self, name)
            if value is not None and self.order != order:
                raise ValueError(
                    f"Decoding: {name} is for order {order}, got {value} for {self.order}; set that order, or leave "
                    f"{name} out."
                )
        for name in ("diagonal_offset", "steps", "context_shift", "draft_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Decoding: {name} must be at least 1, got {value}.")
        if self.choice_temperature is not None and self.choice_temperature < 0:
            raise ValueError(f"Decoding: choice_temperature must be at least 0, got {self.choice_temperature}.")
        if self.context == "rolling" and self.context_shift is not None:
            raise ValueError(
                f"Decoding: context_shift is for an exact context, got {self.context_shift}; a rolling one drops one "
                "step at a time."
            )
        if self.order not in (None, "raster", "diagonal", "masked"):
            raise ValueError(f"Decoding: order must be raster, diagonal or masked, got {self.order!r}.")
        if self.draft_tokens is not None and self.order not in (None, "raster"):
            raise ValueError(f"Decoding: draft_tokens is for order raster, got {self.order}; leave it out.")
        if self.compiled and self.draft_tokens is not None:
            raise ValueError(
                f"Decoding: compiled calls have as many tokens each time, got draft_tokens {self.draft_tokens} too; "
                "leave one out."
            )
        if self.compiled and self.precision == "int8":
            raise ValueError("Decoding: compiled calls have no int8 weights; take another precision, or leave it out.")

    @property
    def frame_precision(self) -> Precision:
        """The precision in which frames are decoded."""
        return "float32" if self.precision == "int8" else self.precision

    def order_for(self, prediction: Prediction) -> Order:
        """The order for a model; a ValueError if the model was not trained for it."""
        order = self.order or ("masked" if prediction == "masked" else "raster")
        if (order == "masked") != (prediction == "masked"):
            raise ValueError(
                f"Decoding: order {order} needs a model with prediction "
                f"{'masked' if order == 'masked' else 'causal'}, got {prediction}; train one with that in its config, "
                "or leave the order out."
            )
        if self.draft_tokens is not None and order != "raster":
            raise ValueError(f"Decoding: draft_tokens is for order raster, and this model's is {order}; leave it out.")
        return order

    def context_for(self, config: WorldModelConfig) -> Context:
        """The context for a model."""
        if self.context is not None:
            return self.context
        return "exact" if config.trained_steps is None or self.context_shift is not None else "rolling"

    def context_shift_for(self, max_steps: int) -> int:
        """Steps that a full exact context drops; a ValueError if none would stay."""
        context_shift = max(1, max_steps // 4) if self.context_shift is None else self.context_shift
        if context_shift >= max_steps:
            raise ValueError(
                f"Decoding: context_shift must be less than the model's max_steps, {max_steps}, got "
                f"{context_shift}; at least one step must stay."
            )
        return context_shift


@dataclass(frozen=True)
class DecodeGroup:
    """Positions of a latent step whose tokens are drawn in one call."""

    positions: Tensor  # (m,) int64
    end: int  # one past the last of them in raster order
    sees: Tensor | None = None  # (m, end) bool: which positions of the step each sees; None: a single one sees all

    @property
    def index(self) -> Tensor | int:
        """The positions (m,), or a number for a single one, which `at_positions` takes as a view."""
        return self.end - 1 if self.sees is None else self.positions


def raster_groups(height: int, width: int, device: torch.device) -> list[DecodeGroup]:
    """One position after another."""
    positions = torch.arange(height * width, device=device)
    return [DecodeGroup(positions[i : i + 1], i + 1) for i in range(height * width)]


def diagonal_groups(height: int, width: int, diagonal_offset: int, device: torch.device) -> list[DecodeGroup]:
    """Row r starts `diagonal_offset` columns after row r - 1, or as soon as that row is finished.

    Example:
        >>> [group.positions.tolist() for group in diagonal_groups(2, 3, 1, torch.device("cpu"))]
        [[0], [1, 3], [2, 4], [5]]
    """
    if diagonal_offset < 1:
        raise ValueError(
            "diagonal_groups: diagonal_offset must be at least 1 (a token depends on the one above it), got "
            f"{diagonal_offset}."
        )
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    call = columns + rows * min(diagonal_offset, width)
    groups = []
    for k in range(int(call.max()) + 1):
        positions = (call == k).nonzero()[:, 0]
        end = int(positions.max()) + 1
        keys = torch.arange(end)
        sees = (keys <= positions[:, None]) & (call[:end] <= k)
        groups.append(DecodeGroup(positions.to(device), end, sees.to(device)))
    return groups


def diagonal_mask(steps: int, height: int, width: int, diagonal_offset: int, device: torch.device) -> Tensor:
    """The attention mask of `steps` whole steps drawn in diagonal order, (T n, T n) bool."""
    n = height * width
    mask = torch.ones(steps * n, steps * n, dtype=torch.bool, device=device).tril()
    within = torch.zeros(n, n, dtype=torch.bool, device=device)
    for group in diagonal_groups(height, width, diagonal_offset, device):
        assert group.sees is not None
        within[group.positions, : group.end] = group.sees
    for step in range(steps):
        own = slice(step * n, (step + 1) * n)
        mask[own, own] = within
    return mask


def sliding_mask(steps: int, max_steps: int, n: int, device: torch.device) -> Tensor:
    """The attention mask of `steps` whole steps of n tokens, (T n, T n) bool: causal, and of the steps before their own
    tokens see the newest `max_steps - 1`."""
    step = torch.arange(steps, device=device).repeat_interleave(n)
    mask = torch.ones(steps * n, steps * n, dtype=torch.bool, device=device).tril()
    return mask & (step > step[:, None] - max_steps)


def known_after(steps: int, positions: int) -> list[int]:
    """How many positions are known after each of `steps` masked draws, few at first (MaskGIT's cosine schedule).

    There are at most as many draws as positions.

    Example:
        >>> known_after(4, 64)
        [5, 19, 40, 64]
    """
    steps = min(steps, positions)
    counts = [positions - math.floor(positions * math.cos(math.pi / 2 * (i + 1) / steps)) for i in range(steps)]
    counts[-1] = positions
    return [max(count, min(i + 1, positions)) for i, count in enumerate(counts)]
