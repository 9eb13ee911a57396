"""The world model: a causal transformer over the tokens of a video, in raster order of latent step, row and
column.

The input of a slot is what is known of it: the token before it, the tokens around its place in the step
before, its step's actions and its place. The output are the logits of its own token. A window's first step
has neither a step before nor actions, whether its recording begins there or not, so that any stretch of an
episode serves as context.

Shapes: b clips, T latent steps, H W rows and columns, n = T * H * W slots, V codes, d width, f frames a step.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidtok_plugin.distributed import mean_over_processes
from world_model import pretrained
from world_model.actions import ActionEmbedding, GroupedActions
from world_model.architecture import WorldModelConfig
from world_model.cache import TransformerCache
from world_model.embedding import CodeTable
from world_model.neighbourhood import CopyBias, PreviousStep, neighbours
from world_model.rotary import Rotation, grid_rotation
from world_model.transformer import Transformer

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """All that is known of a latent step before its first token is drawn, and the code tables, computed once
    a step."""

    inputs: Tensor  # (b, H * W, d)
    around: Tensor | None  # (b, H * W, k * k), the codes that may be pointed at
    embedding: Tensor  # (V, d)
    head: Tensor  # (V, d)


class WorldModel(nn.Module):
    """Predicts each token of a video from those before it and the actions up to its step.

    Example:
        >>> from world_model.architecture import TokenSpec
        >>> from world_model.transformer import TransformerConfig
        >>> tokens = TokenSpec(codebook_size=16, height=2, width=2, temporal_factor=4)
        >>> sizes = TransformerConfig(width=32, depth=1, heads=2)
        >>> model = WorldModel(WorldModelConfig(tokens=tokens, transformer=sizes))
        >>> model(torch.zeros(1, 3, 2, 2, dtype=torch.int64)).shape
        torch.Size([1, 3, 2, 2, 16])
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: WorldModelConfig, adapter_hash: str | None = None) -> None:
        super().__init__()
        if config.tokens is None:
            raise ValueError(
                "WorldModel: the config's tokens must be set; take them from a store: "
                "config.for_tokens(token_spec(store.metadata))."
            )
        self.config = config
        self.tokens = tokens = config.tokens
        self.adapter_hash = adapter_hash  # of the adapter that wrote the tokens it was trained on
        width, codebook, levels = config.transformer.width, tokens.codebook_size, tokens.fsq_levels
        self.embedding = CodeTable(codebook, width, levels, std=0.5)
        self.head = CodeTable(codebook, width, levels, std=0.02)
        self.begin = nn.Parameter(torch.zeros(width))  # stands before a window's first token
        self.place = nn.Parameter(0.1 * torch.randn(tokens.tokens_per_step, width))
        self.actions = (
            None
            if tokens.actions.kind == "none"
            else ActionEmbedding(tokens.actions, tokens.temporal_factor, width, config.action_width)
        )
        self.around_embedding: CodeTable | None = None
        self.previous_step: PreviousStep | None = None
        if config.previous_neighbourhood:
            self.around_embedding = CodeTable(codebook, config.code_width, levels, std=0.5)
            self.previous_step = PreviousStep(config.previous_neighbourhood, config.code_width, width)
        self.copy_bias = CopyBias(config.copy_neighbourhood, width) if config.copy_neighbourhood else None
        self.transformer = Transformer(config.transformer)
        rotation = grid_rotation(
            config.max_steps, tokens.height, tokens.width, config.transformer.head_width, config.rotary_base
        )
        self.register_buffer("rotary_cos", rotation.cos, persistent=False)
        self.register_buffer("rotary_sin", rotation.sin, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.begin.device

    def tables(self) -> list[nn.Parameter]:
        """The parameters that hold a vector for each of many things, which optimizers may treat apart."""
        tables = [*self.embedding.parameters(), *self.head.parameters(), self.place]
        if self.around_embedding is not None:
            tables += self.around_embedding.parameters()
        if self.actions is not None:
            tables += self.actions.embed.parameters()
        return tables

    # Whole windows

    def forward(self, codes: Tensor, actions: GroupedActions | None = None) -> Tensor:
        """Logits (b, T, H, W, V) of every token, each from those before it; codes (b, T, H, W), T <=
        max_steps."""
        hidden = self._hidden(codes, actions)
        around = self._around(codes)
        first = hidden[:, :1] @ self.head().t()
        later = self._logits(hidden[:, 1:], around, self.head())
        logits = torch.cat([first, later], dim=1)
        return rearrange(logits, "b T (H W) V -> b T H W V", H=self.tokens.height)

    def token_losses(self, codes: Tensor, actions: GroupedActions | None = None) -> Tensor:
        """Cross entropy in nats of the tokens of steps 1 .. T-1, (b, T - 1, H, W).

        A window's first step is context alone, here as in rollouts, whose prompt gives it. In training the
        inputs are corrupted and actions dropped as the config says.
        """
        if codes.shape[1] < 2:
            raise ValueError(f"WorldModel: a window must have at least 2 steps to score, got {codes.shape[1]}.")
        inputs = codes
        if self.training:
            inputs, actions = self._corrupt(codes), self._drop(actions)
        hidden = self._hidden(inputs, actions)
        logits = self._logits(hidden[:, 1:], self._around(inputs), self.head())
        losses = F.cross_entropy(logits.flatten(0, 2).float(), codes[:, 1:].flatten().long(), reduction="none")
        return losses.view_as(codes[:, 1:])

    def loss(self, codes: Tensor, actions: GroupedActions | None = None, valid: Tensor | None = None) -> Tensor:
        """Mean of `token_losses` over the steps that `valid` (b, T) marks; all of them without it.

        Under DDP its mean over the processes is that of all their steps, though some have more of them than others.
        """
        losses = self.token_losses(codes, actions)
        if valid is None:
            return losses.mean()
        weight = valid[:, 1:, None, None].expand_as(losses)
        count = weight.sum().to(losses.dtype)
        return (losses * weight).sum() / (mean_over_processes(count) if self.training else count).clamp(min=1)

    # Token by token

    def init_cache(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TransformerCache:
        """An empty cache for a context of `max_steps`; on the model's device and in its dtype unless told."""
        capacity = self.config.max_steps * self.tokens.tokens_per_step
        return self.transformer.init_cache(batch, capacity, device or self.device, dtype or self.begin.dtype)

    def prefill(
        self,
        codes: Tensor,
        actions: GroupedActions | None,
        cache: TransformerCache,
        previous: Tensor | None = None,
    ) -> TransformerCache:
        """Take in whole steps (b, T, H, W) after those in the cache, the last of which is `previous` (b, H,
        W)."""
        self._check_boundary(cache, previous)
        x = self._inputs(codes, actions, previous)
        return self.transformer.step(x, self._rotation(cache.length, x.shape[1]), cache)[1]

    def step_context(
        self, previous: Tensor | None, actions: GroupedActions | None, cache: TransformerCache
    ) -> StepContext:
        """What is known of the next step: the whole step before it (b, H, W), and its actions (one step of
        them)."""
        self._check_boundary(cache, previous)
        before = None if previous is None else previous[:, None]
        told = self._told(before, cache.batch, 1, actions, start=previous is None)
        around = None
        if self.copy_bias is not None and previous is not None:
            around = neighbours(previous, self.copy_bias.size).flatten(1, 2)
        return StepContext(inputs=told[:, 0], around=around, embedding=self.embedding(), head=self.head())

    def step(
        self, token: Tensor | None, context: StepContext, cache: TransformerCache
    ) -> tuple[Tensor, TransformerCache]:
        """The logits (b, V) of the next token, given the one before it (b,), None at the start of a
        window."""
        slot = cache.length % self.tokens.tokens_per_step
        before = self.begin if token is None else F.embedding(token, context.embedding)
        x = (context.inputs[:, slot] + before)[:, None]
        hidden, cache = self.transformer.step(x, self._rotation(cache.length, 1), cache)
        logits = hidden[:, 0] @ context.head.t()
        if self.copy_bias is not None and context.around is not None:
            logits = self.copy_bias(logits, hidden[:, 0], context.around[:, slot])
        return logits, cache

    # Folders

    def save_pretrained(self, folder: str | Path, adapter: "TokenizerAdapter | None" = None) -> None:
        """Write model.safetensors and config.yaml, and the adapter into `adapter/` if it is given."""
        folder = Path(folder)
        if adapter is not None and self.adapter_hash not in (None, adapter.hash):
            raise ValueError(
                "WorldModel: the adapter must be the one whose tokens the model learned, "
                f"{self.adapter_hash}, got {adapter.hash}."
            )
        adapter_hash = self.adapter_hash if adapter is None else adapter.hash
        contents = pretrained.Contents(world_model=self.config, adapter_hash=adapter_hash)
        pretrained.save(folder, contents, self.state_dict())
        if adapter is not None:
            adapter.save_pretrained(folder / pretrained.ADAPTER_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WorldModel":
        """Read a folder written by `save_pretrained`; in eval mode.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: the folder holds another architecture.
        """
        contents, weights = pretrained.load(Path(folder))
        model = cls(contents.world_model, contents.adapter_hash)
        pretrained.load_strictly(model, weights, folder)
        return model.eval()

    # Parts

    def _hidden(self, codes: Tensor, actions: GroupedActions | None) -> Tensor:
        """(b, T, H, W) -> (b, T, H * W, d)."""
        if codes.shape[1] > self.config.max_steps:
            raise ValueError(
                f"WorldModel: a window must have at most {self.config.max_steps} latent steps (max_steps), "
                f"got {codes.shape[1]}."
            )
        x = self._inputs(codes, actions, None)
        hidden = self.transformer(x, self._rotation(0, x.shape[1]))
        return rearrange(hidden, "b (T n) d -> b T n d", n=self.tokens.tokens_per_step)

    def _inputs(self, codes: Tensor, actions: GroupedActions | None, previous: Tensor | None) -> Tensor:
        """The transformer's inputs (b, n, d) for whole steps after `previous`, None at the start of a
        window."""
        self._check_codes(codes)
        b, steps = codes.shape[:2]
        embedded = F.embedding(codes.flatten(1), self.embedding())
        if previous is None:
            before = codes[:, :-1]
            last = self.begin.expand(b, 1, -1)
        else:
            before = torch.cat([previous[:, None], codes[:, :-1]], dim=1)
            last = F.embedding(previous[:, -1, -1:], self.embedding())
        shifted = torch.cat([last, embedded[:, :-1]], dim=1)
        return shifted + self._told(before, b, steps, actions, previous is None).flatten(1, 2)

    def _told(
        self, before: Tensor | None, batch: int, steps: int, actions: GroupedActions | None, start: bool
    ) -> Tensor:
        """What is known of whole steps beforehand, (b, T, H * W, d): place, actions, and the steps `before`
        them."""
        height, width = self.tokens.height, self.tokens.width
        told = self.place.expand(batch, steps, -1, -1)
        if self.previous_step is not None and self.around_embedding is not None:
            if before is None:
                before = torch.zeros(batch, 0, height, width, dtype=torch.int64, device=self.device)
            around = self.previous_step(before, self.around_embedding(), absent_first=start)
            told = told + around.flatten(2, 3)
        if self.actions is None:
            if actions is not None:
                raise ValueError("WorldModel: it was made without actions (tokens.actions.kind none); leave them out.")
            return told
        if actions is None or actions.num_steps != steps:
            got = "none" if actions is None else str(actions.num_steps)
            raise ValueError(
                f"WorldModel: actions must be given for each of the {steps} latent steps, got {got}; "
                "group_actions makes them of one action for each frame."
            )
        if start:
            known = actions.known.clone()
            known[:, 0] = False
            actions = GroupedActions(values=actions.values, known=known)
        return told + self.actions(actions)[:, :, None]

    def _around(self, codes: Tensor) -> Tensor | None:
        """The codes that steps 1 .. T-1 may point at, (b, T - 1, H * W, k * k)."""
        if self.copy_bias is None:
            return None
        return neighbours(codes[:, :-1], self.copy_bias.size).flatten(2, 3)

    def _logits(self, hidden: Tensor, around: Tensor | None, head: Tensor) -> Tensor:
        logits = hidden @ head.t()
        if self.copy_bias is not None and around is not None:
            logits = self.copy_bias(logits, hidden, around)
        return logits

    def _rotation(self, start: int, count: int) -> Rotation:
        slots = slice(start, start + count)
        return Rotation(self.rotary_cos[slots], self.rotary_sin[slots])

    def _check_boundary(self, cache: TransformerCache, previous: Tensor | None) -> None:
        """Whole steps begin where others end, and `previous` is told but at the start of a window."""
        if cache.length % self.tokens.tokens_per_step or (cache.length == 0) != (previous is None):
            raise ValueError(
                "WorldModel: a step must begin where another ends, knowing it unless the cache is empty; "
                f"the cache holds {cache.length} tokens, {self.tokens.tokens_per_step} make a step, and "
                f"previous {'was not' if previous is None else 'was'} given."
            )

    def _check_codes(self, codes: Tensor) -> None:
        grid = (self.tokens.height, self.tokens.width)
        if codes.ndim != 4 or codes.shape[2:] != grid or codes.is_floating_point():
            raise ValueError(
                f"WorldModel: codes must be integers of shape (b, T, {grid[0]}, {grid[1]}), got "
                f"{codes.dtype} of {tuple(codes.shape)}."
            )

    def _corrupt(self, codes: Tensor) -> Tensor:
        """Replace a random share of each clip's codes, between 0 and `corruption`, by random codes."""
        if self.config.corruption == 0:
            return codes
        share = self.config.corruption * torch.rand(codes.shape[0], 1, 1, 1, device=codes.device)
        noise = torch.randint_like(codes, self.tokens.codebook_size)
        return torch.where(torch.rand(codes.shape, device=codes.device) < share, noise, codes)

    def _drop(self, actions: GroupedActions | None) -> GroupedActions | None:
        """Forget the actions of a random share of steps."""
        if actions is None or self.config.action_dropout == 0:
            return actions
        keep = torch.rand(actions.known.shape[:2], device=actions.known.device) >= self.config.action_dropout
        return GroupedActions(values=actions.values, known=actions.known & keep[..., None])
