"""Raster order with one compiled call per token: shapes are the same at every position, and nothing waits for the
device.

Positions are tensors, and attention is over the cache's whole capacity, masked. So the call is compiled once, and again
for each other batch size, sampler, or depth of nested forks. On CUDA it is captured as a graph
(`mode="reduce-overhead"`).

Shapes: b rollouts, n positions of a step.
"""

from dataclasses import replace

import torch
from torch import Tensor

from world_model.generation.drawn import DrawnStep, blank_entropy, blank_hidden
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.prediction.base import StepContext
from world_model.prediction.causal import CausalPrediction
from world_model.transformer.cache import TransformerCache

MAX_VERSIONS = 64  # of the compiled call; PyTorch's own limit of 8 would end a process that tries nine batch sizes


class CompiledDrawing:
    """`GroupDrawing` in raster order, compiled."""

    tokens_per_call: int | None = None  # the compiled call looks up weights itself
    fills_cache = True

    def __init__(
        self, model: WorldModel, prediction: CausalPrediction, sampler: Sampler, backend: str = "inductor"
    ) -> None:
        self.model, self.prediction, self.sampler = model, prediction, sampler
        self.calls = model.tokens.tokens_per_step
        self.noise_per_step = self.calls * model.head.noise_per_token
        mode = "reduce-overhead" if model.device.type == "cuda" and backend == "inductor" else None
        self._compiled = torch.compile(self._draw_position, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def draw(
        self, before: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor, *, entropy: bool = False
    ) -> DrawnStep:
        current, noise = torch.zeros_like(before), noise.unflatten(1, (self.calls, -1))
        kept = blank_hidden(self.model, before)
        entropies = blank_entropy(self.model, before) if entropy else None
        base = torch.full((1,), cache.length, device=current.device)
        fixed = replace(cache, length=0)  # a number would be compiled in
        # The call makes the blocks, on buffers that it knows to be static, and reads no states.
        context = replace(context, blocks=None, past_state=None)
        if current.is_cuda:  # a graph that writes into buffers needs to know that they stay where they are
            for buffer in (cache.own.keys, cache.own.values):
                torch._dynamo.mark_static_address(buffer, guard=False)
        if cache.shared:  # forks share pasts of any length
            for segment in (*cache.shared, cache.own):
                torch._dynamo.maybe_mark_dynamic(segment.keys, 3)
                torch._dynamo.maybe_mark_dynamic(segment.values, 3)
        positions = torch.arange(self.calls, device=current.device)
        with torch._dynamo.config.patch(recompile_limit=MAX_VERSIONS):
            for i in range(self.calls):
                position = positions[i : i + 1]
                drawn, hidden, of_code = self._compiled(current, position, base, context, fixed, noise, entropy)
                current.index_copy_(1, position, drawn)
                if kept is not None:
                    kept.index_copy_(1, position, hidden[: len(kept)])
                if entropies is not None and of_code is not None:
                    entropies.index_copy_(1, position, of_code)
        return DrawnStep(tokens=current, hidden=kept, entropy=entropies, calls=self.calls)

    def _draw_position(
        self,
        current: Tensor,
        position: Tensor,
        base: Tensor,
        context: StepContext,
        cache: TransformerCache,
        noise: Tensor,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = self.prediction.step_at(self.sampler.model_rows(current), position, base, context, cache)
        uniforms = noise.index_select(1, position)
        drawn = self.model.draw(hidden, position, context, uniforms, self.sampler, confidence=False, entropy=entropy)
        return drawn.tokens, hidden, drawn.entropy
