"""A latent step by compiled calls: shapes are the same in every call, and nothing waits for the device.

Positions are tensors, and attention is over the cache's whole capacity, masked. So an order's call is compiled once,
and again for each other batch size, sampler, or depth of nested forks. It draws by random numbers that it is given. On
CUDA it is captured as a graph (`mode="reduce-overhead"`).

Shapes: b rollouts, n positions of a step, m of them in a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from world_model.decoding import DecodeGroup, known_after
from world_model.generation.choosing import choice_confidence
from world_model.generation.drawn import DrawnStep, blank_entropy, blank_hidden
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.prediction.causal import CausalPrediction
from world_model.prediction.masked import MaskedPrediction
from world_model.transformer.cache import TransformerCache
from world_model.transformer.fast.prepack import Rows

MAX_VERSIONS = 64  # of the compiled call; PyTorch's own limit of 8 would end a process that tries nine batch sizes


def compiled_call(function: Callable[..., Any], device: torch.device, backend: Any) -> Callable[..., Any]:
    """The function, compiled. A graph's outputs are valid until its next call."""
    mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def call(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MAX_VERSIONS):
            return compiled(*arguments)

    return call


def as_inputs(context: StepContext, cache: TransformerCache) -> tuple[StepContext, TransformerCache, Tensor]:
    """The context and the cache as a compiled call takes them, and the cache's length (1,)."""
    buffers = (cache.own.keys, cache.own.values)
    if buffers[0].is_cuda:  # a graph that writes into buffers needs to know that they stay where they are
        for buffer in buffers:
            torch._dynamo.mark_static_address(buffer, guard=False)
    if cache.shared:  # forks share pasts of any length
        for segment in (*cache.shared, cache.own):
            torch._dynamo.maybe_mark_dynamic(segment.keys, 3)
            torch._dynamo.maybe_mark_dynamic(segment.values, 3)
    base = torch.full((1,), cache.length, device=buffers[0].device)
    # The call makes the blocks, on buffers that it knows to be static, and reads no states; a length would be compiled
    # in.
    return replace(context, blocks=None, past_state=None), replace(cache, length=0), base


class CompiledGroupDrawing:
    """`GroupDrawing` with one compiled call for all groups, each padded to the largest by its own last position."""

    tokens_per_call: Rows | None = None  # the compiled call looks up weights itself
    fills_cache = True

    def __init__(
        self,
        model: WorldModel,
        prediction: CausalPrediction,
        sampler: Sampler,
        groups: Sequence[DecodeGroup],
        backend: Any = "inductor",
    ) -> None:
        self.model, self.prediction, self.sampler, self.groups = model, prediction, sampler, groups
        n = model.tokens.tokens_per_step
        self.noise_per_step = n * model.head.noise_per_token
        largest = max(len(group.positions) for group in groups)
        self.positions = [_padded(group.positions, largest) for group in groups]
        self.sees = [_padded(_sees(group, n), largest) for group in groups]
        self._draw_group = compiled_call(self._drawn_group, model.device, backend)

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        current, noise = torch.zeros_like(before), noise.unflatten(1, (before.shape[1], -1))
        kept = blank_hidden(self.model, before)
        entropies = blank_entropy(self.model, before) if entropy else None
        inputs = as_inputs(context, cache)
        for group, positions, sees in zip(self.groups, self.positions, self.sees, strict=True):
            drawn, hidden, of_codes = self._draw_group(current, positions, sees, *inputs, noise, entropy)
            m = len(group.positions)
            current.index_copy_(1, group.positions, drawn[:, :m])
            if kept is not None:
                kept.index_copy_(1, group.positions, hidden[: len(kept), :m])
            if entropies is not None and of_codes is not None:
                entropies.index_copy_(1, group.positions, of_codes[:, :m])
        return DrawnStep(tokens=current, hidden=kept, entropy=entropies, calls=len(self.groups))

    def _drawn_group(
        self,
        current: Tensor,
        positions: Tensor,
        sees: Tensor,
        context: StepContext,
        cache: TransformerCache,
        base: Tensor,
        noise: Tensor,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = self.prediction.step_at(self.sampler.model_rows(current), positions, sees, base, context, cache)
        uniforms = noise.index_select(1, positions)
        drawn = self.model.draw(hidden, positions, context, uniforms, self.sampler, confidence=False, entropy=entropy)
        return drawn.tokens, hidden, drawn.entropy


class CompiledMaskedDrawing:
    """`MaskedDrawing` with one compiled call, which a last time writes the keys and values of the whole step."""

    tokens_per_call: Rows | None = None
    fills_cache = True

    def __init__(
        self,
        model: WorldModel,
        prediction: MaskedPrediction,
        sampler: Sampler,
        *,
        steps: int,
        temperature: float,
        backend: Any = "inductor",
    ) -> None:
        self.model, self.prediction, self.sampler = model, prediction, sampler
        counts = known_after(steps, model.tokens.tokens_per_step)
        self.calls = calls = len(counts)
        self.noise_per_step = calls * model.tokens.tokens_per_step * (model.head.noise_per_token + 1)
        self.counts = torch.tensor(counts, device=model.device)
        self.temperatures = torch.tensor([temperature * (1 - (i + 1) / calls) for i in range(calls)])
        self.temperatures = self.temperatures.to(model.device)
        self.indices = torch.arange(calls, device=model.device)
        self._predict = compiled_call(self._drawn_masked, model.device, backend)

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        current, noise = torch.zeros_like(before), noise.unflatten(1, (self.calls, before.shape[1], -1))
        known = torch.zeros(current.shape[:2], dtype=torch.bool, device=current.device)
        kept = blank_hidden(self.model, before)
        entropies = blank_entropy(self.model, before) if entropy else None
        inputs = as_inputs(context, cache)
        for i in range(self.calls + 1):
            index = self.indices[min(i, self.calls - 1)].view(1)
            drawn = self._predict(current, known, entropies, index, *inputs, noise)
            if i == self.calls:  # all tokens were known: the call wrote their keys and values
                break
            current.copy_(drawn[0])
            known.copy_(drawn[1])
            if entropies is not None:
                entropies.copy_(drawn[2])
            if kept is not None and i + 1 == self.calls:
                kept.copy_(drawn[3][: len(kept)])
        return DrawnStep(tokens=current, hidden=kept, entropy=entropies, calls=self.calls + 1)

    def _drawn_masked(
        self,
        current: Tensor,
        known: Tensor,
        entropies: Tensor | None,
        index: Tensor,
        context: StepContext,
        cache: TransformerCache,
        base: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """The tokens, which of them are known and their entropies after the call `index` (1,), and hidden states."""
        rows = self.sampler.model_rows
        hidden = self.prediction.predict_masked_at(rows(current), rows(known), base, context, cache)
        noise = noise.index_select(1, index)[:, 0]
        entropy = entropies is not None
        drawn = self.model.draw(hidden, None, context, noise[..., :-1], self.sampler, entropy=entropy)
        confidence = choice_confidence(drawn, noise[..., -1], self.temperatures.index_select(0, index))
        order = confidence.masked_fill(known, float("inf")).argsort(dim=1, descending=True, stable=True)
        among = torch.arange(known.shape[1], device=known.device) < self.counts.index_select(0, index)
        now_known = torch.zeros_like(known).scatter(1, order, among.expand_as(known))
        new = now_known & ~known
        current = torch.where(new[..., None] if current.ndim == 3 else new, drawn.tokens, current)
        if entropies is not None and drawn.entropy is not None:
            entropies = torch.where(new, drawn.entropy, entropies)
        return current, now_known, entropies, hidden


def _sees(group: DecodeGroup, n: int) -> Tensor:
    """Which of a step's n positions a group's positions see, (m, n) bool."""
    sees = group.positions.new_zeros(len(group.positions), n, dtype=torch.bool)
    sees[:, : group.end] = True if group.sees is None else group.sees
    return sees


def _padded(of_positions: Tensor, count: int) -> Tensor:
    """(m, ...) with the last of them repeated, (count, ...)."""
    last = of_positions[-1:].expand(count - len(of_positions), *of_positions.shape[1:])
    return torch.cat([of_positions, last])
