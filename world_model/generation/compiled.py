"""Raster decoding with one compiled call a token: shapes are the same at every slot, and nothing waits for the device.

Where slots stand is told by tensors, and attention looks over all of the cache's room, masked, so that the call is
compiled once; and once more for each other batch size, sampler or number of forks in a row. On CUDA it is meant to be
captured as a graph (`mode="reduce-overhead"`).

Shapes: b rollouts, n slots of a step.
"""

from dataclasses import replace

import torch
from torch import Tensor

from world_model.heads.sampler import Sampler
from world_model.model import StepContext, WorldModel
from world_model.transformer.cache import TransformerCache

VERSIONS = 64  # compiled at most; PyTorch's own limit of 8 would end a process that tries nine batch sizes


class CompiledPosition:
    """Draws the tokens of a latent step, one call each."""

    def __init__(self, model: WorldModel, sampler: Sampler, backend: str = "inductor") -> None:
        self.model, self.sampler = model, sampler
        mode = "reduce-overhead" if model.device.type == "cuda" and backend == "inductor" else None
        self._slot = torch.compile(self._draw_slot, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def draw_step(self, current: Tensor, context: StepContext, cache: TransformerCache, noise: Tensor) -> None:
        """Fill `current` (b, n[, p]) by uniform numbers (b, n, .); the cache's length stays."""
        base = torch.full((1,), cache.length, device=current.device)
        fixed = replace(cache, length=0)  # a number would be compiled in
        context = replace(context, blocks=None)  # the call itself looks them up, in buffers known to stay
        if current.is_cuda:  # a graph that writes into buffers needs to know that they stay where they are
            for buffer in (cache.own.keys, cache.own.values):
                torch._dynamo.mark_static_address(buffer, guard=False)
        if cache.shared:  # forks leave their pasts at any length
            for segment in (*cache.shared, cache.own):
                torch._dynamo.maybe_mark_dynamic(segment.keys, 3)
                torch._dynamo.maybe_mark_dynamic(segment.values, 3)
        positions = torch.arange(current.shape[1], device=current.device)
        with torch._dynamo.config.patch(recompile_limit=VERSIONS):
            for i in range(current.shape[1]):
                drawn = self._slot(current, positions[i : i + 1], base, context, fixed, noise)
                current.index_copy_(1, positions[i : i + 1], drawn)

    def _draw_slot(
        self,
        current: Tensor,
        position: Tensor,
        base: Tensor,
        context: StepContext,
        cache: TransformerCache,
        noise: Tensor,
    ) -> Tensor:
        rows = torch.cat([current, current]) if self.sampler.guidance != 1 else current
        hidden = self.model.step_at(rows, position, base, context, cache)
        uniforms = noise.index_select(1, position)
        return self.model.draw(hidden, position, context, uniforms, self.sampler, confidence=False).tokens
