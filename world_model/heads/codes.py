"""The head of codes: a categorical distribution for each factor, given the factors before it.

A flat vocabulary is a single factor. Large codebooks have two: for 262,144 codes, two tables of 512 rows replace a
matrix of 262,144. The loss is the sum over the factors, which is the code's cross entropy.

Shapes: ... tokens, k factors, V values of a factor, d width, c codes in the local window of the step before.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.adapter.vocabulary import join_codes, split_codes
from world_model.heads.base import DrawnTokens
from world_model.heads.sampler import Sampler
from world_model.inputs.embedding import CodeTable, Factors, Tables
from world_model.inputs.neighborhood import CopyBias
from world_model.transformer.fast.choice import functions


class CodeHead(nn.Module):
    """Logits of each factor from the hidden state plus the embeddings of the factors before it."""

    def __init__(self, factors: Factors, width: int, copy_size: int) -> None:
        super().__init__()
        self.sizes = tuple(size for size, _ in factors)
        self.factors = nn.ModuleList(CodeTable(size, width, levels, std=0.02) for size, levels in factors)
        self.given = nn.ModuleList(GivenFactor(size, levels, width) for size, levels in factors[:-1])
        self.copy = nn.ModuleList(CopyBias(copy_size, width) for _ in factors) if copy_size else None

    def tables(self) -> Tables:
        """The output tables of all factors, then the input tables of those that others are conditioned on."""
        own = tuple(table() for table in self.factors)
        return own + tuple(self._given_factor(i).table() for i in range(1, len(self.sizes)))

    def logits(self, hidden: Tensor, neighbor_codes: Tensor | None, codes: Tensor, tables: Tables) -> list[Tensor]:
        """Logits of each factor (..., V), given the true ones before it.

        hidden: (..., d). codes: (...). neighbor_codes: (..., c), the codes of the step before that may be copied.
        """
        factors = split_codes(codes, self.sizes)
        out = []
        for i in range(len(self.sizes)):
            if i:
                hidden = self._given(i, hidden, factors[..., i - 1], tables)
            out.append(self._logits(i, hidden, neighbor_codes, tables))
        return out

    def scores(
        self, hidden: Tensor, neighbor_codes: Tensor | None, codes: Tensor, tables: Tables, *, correct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Cross entropies in nats and, if asked for, whether the likeliest value is `correct`, (..., k) each."""
        factors = split_codes(codes, self.sizes).unbind(-1)
        losses, right = [], []
        for logits, factor in zip(self.logits(hidden, neighbor_codes, codes, tables), factors, strict=True):
            flat, targets = logits.flatten(0, -2), factor.flatten().long()
            losses.append(F.cross_entropy(flat.float(), targets, reduction="none").view(factor.shape))
            if correct:
                right.append((flat.detach().argmax(-1) == targets).view(factor.shape))
        return torch.stack(losses, dim=-1), torch.stack(right, dim=-1) if correct else None

    def check_sampler(self, sampler: Sampler) -> None:
        """A ValueError for settings that codes do not have."""
        if sampler.flow_steps is not None:
            raise ValueError(f"Sampler: flow_steps is for continuous tokens, got {sampler.flow_steps}; leave it out.")

    @property
    def noise_per_token(self) -> int:
        """Uniform numbers per token."""
        return len(self.sizes)

    def draw(
        self,
        hidden: Tensor,
        neighbor_codes: Tensor | None,
        noise: Tensor,
        sampler: Sampler,
        tables: Tables,
        *,
        confidence: bool = True,
        entropy: bool = False,
    ) -> DrawnTokens:
        """Draw codes (b, m) for hidden (b, m, d) by `noise` (b, m, k), uniform in [0, 1), with their `confidence`.

        `entropy`: also that of each code's distribution at temperature 1, before top-k and top-p. With several factors
        it is the sum over the factors, each given the drawn ones before it.
        With guidance, hidden has the 2 b rows of `Sampler.model_rows`, and each factor's logits are guided.
        """
        factors: list[Tensor] = []
        confidences: list[Tensor] = []
        entropies: list[Tensor] = []
        b, m = noise.shape[:2]
        hidden = hidden.flatten(0, 1)
        neighbor_codes = None if neighbor_codes is None else neighbor_codes.flatten(0, 1)
        for i in range(len(self.sizes)):
            if i:
                hidden = self._given(i, hidden, sampler.model_rows(factors[-1]), tables)
            logits = self._logits(i, hidden, neighbor_codes, tables)
            if sampler.guided:
                logits = sampler.guide(logits)
            factor = sampler.draw(logits, noise[..., i].flatten())
            if confidence or entropy:
                log_p = logits.float().log_softmax(-1)
            if confidence:
                confidences.append(log_p.gather(-1, factor[:, None])[:, 0])
            if entropy:
                entropies.append(-(log_p.exp() * log_p).sum(-1))
            factors.append(factor)
        codes = factors[0] if len(factors) == 1 else join_codes(torch.stack(factors, dim=-1), self.sizes)
        return DrawnTokens(
            tokens=codes.view(b, m),
            confidence=torch.stack(confidences).sum(0).view(b, m) if confidence else None,
            entropy=torch.stack(entropies).sum(0).view(b, m) if entropy else None,
        )

    def _given(self, i: int, hidden: Tensor, factor: Tensor, tables: Tables) -> Tensor:
        return self._given_factor(i)(hidden, F.embedding(factor, tables[len(self.sizes) + i - 1]))

    def _given_factor(self, i: int) -> "GivenFactor":
        given = self.given[i - 1]
        assert isinstance(given, GivenFactor)
        return given

    def _logits(self, i: int, hidden: Tensor, neighbor_codes: Tensor | None, tables: Tables) -> Tensor:
        logits = functions(hidden).linear(hidden, tables[i])
        if self.copy is None or neighbor_codes is None:
            return logits
        if len(self.sizes) > 1:
            neighbor_codes = torch.where(
                neighbor_codes >= 0, split_codes(neighbor_codes.clamp(min=0), self.sizes)[..., i], -1
            )
        copied: Tensor = self.copy[i](logits, hidden, neighbor_codes)
        return copied


class GivenFactor(nn.Module):
    """Adds a factor to the hidden state from which the next is predicted."""

    def __init__(self, size: int, levels: tuple[int, ...] | None, width: int) -> None:
        super().__init__()
        self.table = CodeTable(size, width, levels, std=0.5)
        self.mix = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.mix.weight, std=width**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        gate, value = self.mix(hidden + vector).chunk(2, dim=-1)
        return hidden + self.out(F.silu(gate) * value)
