"""The world model: a transformer over the tokens of a video, which predicts each from the steps before it, from the
tokens of its own step that are known, and from the actions up to its step.

Causal models know the tokens before it in raster order of latent step, row and column; masked ones any others of its
step. A window's first step has neither a step before nor actions, whether its recording begins there or not, so that
any stretch of an episode serves as context.

Shapes: b clips, T latent steps, H W rows and columns, n = H * W slots of a step, m some of them, d width, f frames a
step, k factors. Tokens are codes (b, T, H, W), or patches (b, T, H, W, p).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtok_plugin.common.distributed import mean_over_processes
from vidtok_plugin.common.state_dict import load_state_dict_strictly
from world_model import weights as weights_io
from world_model.actions import GroupedActions
from world_model.architecture import FlowConfig, WorldModelConfig
from world_model.decoding import DecodeGroup, diagonal_mask
from world_model.heads.base import DrawnTokens, TokenScores
from world_model.heads.codes import CodeHead
from world_model.heads.flow import FlowHead
from world_model.heads.sampler import Sampler
from world_model.inputs.corruption import corrupt_tokens, drop_actions
from world_model.inputs.embedding import CodeTable, Tables
from world_model.inputs.masking import random_known, step_mask, training_layout
from world_model.inputs.neighborhood import local_window
from world_model.inputs.positions import CausalInputs, InputTables, MaskedInputs, StepInputs, at_positions
from world_model.transformer.cache import Placement, TransformerCache
from world_model.transformer.rotary import grid_rotation
from world_model.transformer.transformer import DecodeBlocks, Transformer

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """All that is known of a latent step before its first token is drawn, and what is looked up once a step."""

    conditioning: Tensor  # (b, n, d)
    neighbor_codes: Tensor | None  # (b, n, c), the codes that may be pointed at
    inputs: InputTables
    head: Tables
    blocks: DecodeBlocks | None  # of the cache; None: looked up at each call


class WorldModel(nn.Module):
    """Predicts each token of a video from those before it and the actions up to its step.

    Example:
        >>> from world_model.architecture import TokenSpec
        >>> from world_model.transformer.block import TransformerConfig
        >>> tokens = TokenSpec(codebook_size=16, height=2, width=2, temporal_factor=4)
        >>> sizes = TransformerConfig(width=32, depth=1, heads=2)
        >>> model = WorldModel(WorldModelConfig(tokens=tokens, transformer=sizes))
        >>> codes = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
        >>> [logits.shape for logits in model.logits(codes)]
        [torch.Size([1, 3, 2, 2, 16])]
    """

    def __init__(self, config: WorldModelConfig, token_hash: str | None = None) -> None:
        super().__init__()
        if config.tokens is None:
            raise ValueError(
                "WorldModel: the config's tokens must be set; take them from a store: "
                "config.for_tokens(token_spec(store.metadata))."
            )
        self.config = config
        self.tokens = tokens = config.tokens
        self.token_hash = token_hash  # of the adapter that wrote the tokens: its decoder may be trained on
        sizes = config.transformer
        self.step_inputs = StepInputs(config)
        self.inputs = MaskedInputs(config) if config.prediction == "masked" else CausalInputs(config)
        rotation = grid_rotation(config.max_steps, tokens.height, tokens.width, sizes.head_width, config.rotary_base)
        self.transformer = Transformer(sizes, rotation)
        self.head: CodeHead | FlowHead
        if tokens.patch_dim is not None:
            self.head = FlowHead(tokens.patch_dim, sizes.width, config.flow or FlowConfig())
        else:
            self.head = CodeHead(config.factors(), sizes.width, config.copy_size)

    @property
    def device(self) -> torch.device:
        return self.step_inputs.place.device

    @property
    def dtype(self) -> torch.dtype:
        return self.step_inputs.place.dtype

    @property
    def factor_sizes(self) -> tuple[int, ...] | None:
        """How many values each factor of a code has, one for a flat vocabulary; None for continuous tokens."""
        return self.head.sizes if isinstance(self.head, CodeHead) else None

    def tables(self) -> list[nn.Parameter]:
        """The parameters that hold a vector for each of many things, which optimizers may treat apart."""
        holders = [module for module in self.modules() if isinstance(module, CodeTable | nn.Embedding)]
        return [self.step_inputs.place, *(table for module in holders for table in module.parameters())]

    # Whole windows

    def forward(
        self,
        tokens: Tensor,
        actions: GroupedActions | None = None,
        *,
        known: Tensor | None = None,
        corruption: Tensor | None = None,
        diagonal_offset: int | None = None,
        since: int = 0,
    ) -> Tensor:
        """Hidden states (head inputs) for every token of a window of at most `max_steps` steps.

        A causal model gives (b, T - since, H, W, d), those of the steps from `since` on. Each sees the tokens before
        it, or with `diagonal_offset` those of them that diagonal order has drawn by then. A masked model gives
        (b, T - 1, H, W, d), those of the steps after the first. Each sees the whole steps before its own, and the
        tokens of its own step that `known` (b, T - 1, H, W) bool marks: none without it. `corruption` (b,) conditions
        the model on the fraction of replaced tokens, relative to the config's maximum.
        """
        tokens = self._checked_window(tokens)
        if known is not None and self.config.prediction == "causal":
            raise ValueError("WorldModel: known is for masked models; a causal one knows the tokens before each.")
        if diagonal_offset is not None and self.config.prediction == "masked":
            raise ValueError("WorldModel: diagonal_offset is for causal models; a masked one has no order.")
        if since and self.config.prediction == "masked":
            raise ValueError("WorldModel: since is for causal models; a masked one's are the steps after the first.")
        if not 0 <= since <= tokens.shape[1]:
            raise ValueError(f"WorldModel: since must be 0 to {tokens.shape[1]}, the window's steps, got {since}.")
        tables = self._input_tables()
        first = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        first[:, 0] = True
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        conditioning = self.step_inputs(before, first, actions, corruption, tables)
        if isinstance(self.inputs, CausalInputs):
            x = conditioning + self.inputs(tokens, self.step_inputs.narrow, tables)
            mask = None
            if diagonal_offset is not None:
                grid = (self.tokens.height, self.tokens.width)
                mask = diagonal_mask(tokens.shape[1], *grid, diagonal_offset, tokens.device)
            needed = (tokens.shape[1] - since) * self.tokens.tokens_per_step
            hidden = self.transformer(x.flatten(1, 2), mask=mask, needed=needed)
        else:
            masked = tokens[:, 1:]
            none = torch.zeros(masked.shape[:4], dtype=torch.bool, device=tokens.device)
            x = torch.cat(
                [
                    conditioning + self.inputs(tokens, None, tables),
                    conditioning[:, 1:] + self.inputs(masked, none if known is None else known, tables),
                ],
                dim=1,
            )
            positions, mask = training_layout(tokens.shape[1], self.tokens.tokens_per_step, tokens.device)
            hidden = self.transformer(x.flatten(1, 2), positions, mask, masked.shape[1] * self.tokens.tokens_per_step)
        return rearrange(hidden, "b (T H W) d -> b T H W d", H=self.tokens.height, W=self.tokens.width)

    def logits(self, codes: Tensor, actions: GroupedActions | None = None, known: Tensor | None = None) -> list[Tensor]:
        """Logits (b, T, H, W, V) of every factor, given the true ones before it: see `forward` for which tokens."""
        if not isinstance(self.head, CodeHead):
            raise ValueError("WorldModel: continuous tokens have no logits; use score.")
        hidden, tables = self(codes, actions, known=known), self.head.tables()
        if self.config.prediction == "masked":
            return self.head.logits(hidden, self._neighbor_codes(codes), codes[:, 1:], tables)
        # A first step has none before it to point at.
        first = self.head.logits(hidden[:, :1], None, codes[:, :1], tables)
        later = self.head.logits(hidden[:, 1:], self._neighbor_codes(codes), codes[:, 1:], tables)
        return [torch.cat(parts, dim=1) for parts in zip(first, later, strict=True)]

    def score(
        self, tokens: Tensor, actions: GroupedActions | None = None, *, diagonal_offset: int | None = None
    ) -> TokenScores:
        """How well the tokens of the steps 1 .. T-1 are predicted, in raster order or in diagonal order.

        A window's first step is context alone, here as in rollouts, whose prompt gives it. In training the inputs are
        corrupted and actions dropped as the config says, and `correct` isn't told. Masked models are scored with a
        random part of each step's tokens told, in eval mode the same in each call.
        """
        if tokens.shape[1] < 2:
            raise ValueError(f"WorldModel: a window must have at least 2 steps to score, got {tokens.shape[1]}.")
        tokens = self._checked(tokens)
        inputs, corruption, targets = tokens, None, tokens[:, 1:]
        if self.training:
            if self.config.corruption:
                inputs, corruption = corrupt_tokens(tokens, self.config.corruption, self.tokens.codebook_size)
            if self.config.action_dropout and actions is not None:
                actions = drop_actions(actions, self.config.action_dropout)
        if self.config.prediction == "masked":
            shape = (targets.shape[0], targets.shape[1], targets.shape[2], targets.shape[3])
            known, weights = random_known(shape, tokens.device, seeded=not self.training)
            hidden = self(inputs, actions, known=known, corruption=corruption, diagonal_offset=diagonal_offset)
        else:
            hidden = self(inputs, actions, corruption=corruption, diagonal_offset=diagonal_offset, since=1)
            weights = torch.ones(targets.shape[:4], device=tokens.device)
        neighbor_codes, tables = self._neighbor_codes(inputs), self.head.tables()
        losses, correct = self.head.scores(hidden, neighbor_codes, targets, tables, correct=not self.training)
        return TokenScores(losses=losses, correct=correct, weights=weights)

    def loss(self, tokens: Tensor, actions: GroupedActions | None = None, valid: Tensor | None = None) -> Tensor:
        """Mean of the scores' token losses over the steps that `valid` (b, T) marks; all of them without it.

        Under DDP its mean over the processes is that of all their steps, though some have more of them than others.
        """
        scores = self.score(tokens, actions)
        weight = scores.weights if valid is None else scores.weights * valid[:, 1:, None, None]
        count = weight.sum()
        total = (scores.token_losses * weight).sum()
        return total / (mean_over_processes(count) if self.training else count).clamp(min=1)

    # Step by step

    def init_cache(
        self,
        batch: int,
        padding: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TransformerCache:
        """An empty cache for a context of `max_steps`; on the model's device and in its dtype unless told.

        `padding` (b,) is the number of each row's first steps that stand for nothing: pasts of different lengths go
        together by their ends.
        """
        positions = self.tokens.tokens_per_step
        return self.transformer.init_cache(
            batch,
            self.config.max_steps * positions,
            begin=None if padding is None else padding * positions,
            device=device or self.device,
            dtype=dtype or self.dtype,
        )

    def emptied(self, cache: TransformerCache, padding: Tensor | None = None) -> TransformerCache:
        """The same buffers, as `init_cache` would give them."""
        return replace(cache, length=0, begin=None if padding is None else padding * self.tokens.tokens_per_step)

    def prefill(
        self,
        tokens: Tensor,
        actions: GroupedActions | None,
        cache: TransformerCache,
        previous: Tensor | None = None,
    ) -> TransformerCache:
        """Take in whole steps (b, T, H, W[, p]) after those in the cache, the last of which is `previous` (b, H, W[,
        p])."""
        self._check_boundary(cache, previous)
        tokens = self._checked(tokens)
        steps, n = tokens.shape[1], self.tokens.tokens_per_step
        cache.check_room(steps * n)
        before = torch.cat([(tokens[:, 0] if previous is None else previous)[:, None], tokens[:, :-1]], dim=1)
        tables = self._input_tables()
        conditioning = self.step_inputs(before, self._first(cache, len(tokens), steps), actions, None, tables)
        if isinstance(self.inputs, CausalInputs):
            x = conditioning + self.inputs(tokens, self.step_inputs.narrow, tables)
            return self.transformer.prefill(x.flatten(1, 2), cache)
        x = conditioning + self.inputs(tokens, None, tables)
        end = cache.length + steps * n
        at = Placement(positions=slice(cache.length, end), end=end, mask=step_mask(cache.length, steps, n, x.device))
        return self.transformer.prefill(x.flatten(1, 2), cache, at)

    def step_context(
        self,
        previous: Tensor | None,
        actions: GroupedActions | None,
        cache: TransformerCache,
        blocks: DecodeBlocks | None = None,
    ) -> StepContext:
        """What is known of the next step: the whole step before it (b, H, W[, p]), None at the start of a window, and
        its actions (one step of them). It is for steps in this cache: `layers` are its own, looked up unless given."""
        self._check_boundary(cache, previous)
        cache.check_room(self.tokens.tokens_per_step)
        tables = self._input_tables()
        before = self._nothing(cache.batch) if previous is None else previous
        conditioning = self.step_inputs(before[:, None], self._first(cache, cache.batch, 1), actions, None, tables)
        neighbor_codes = None
        if self.config.copy_size and previous is not None:
            neighbor_codes = local_window(previous, self.config.copy_size).flatten(1, 2)
        blocks = self.transformer.decode_blocks(cache) if blocks is None else blocks
        return StepContext(
            conditioning=conditioning[:, 0],
            neighbor_codes=neighbor_codes,
            inputs=tables,
            head=self.head.tables(),
            blocks=blocks,
        )

    def step(self, current: Tensor, group: DecodeGroup, context: StepContext, cache: TransformerCache) -> Tensor:
        """What the head draws some tokens of a causal model's next step of, (b, m, d): those of `group`, for which all
        they see has been drawn into `current` (b, n[, p]). Their keys and values are written into the cache, whose
        length stays; after the whole step it is to be `advanced`."""
        base = cache.length
        if group.sees is None:
            at = Placement(positions=slice(base + group.end - 1, base + group.end), end=base + group.end)
        else:
            past = group.sees.new_ones(len(group.positions), base)
            mask = torch.cat([past, group.sees], dim=1)
            at = Placement(positions=base + group.positions, end=base + group.end, mask=mask)
        return self._step(current, group.place, context, cache, at)

    def step_at(
        self, current: Tensor, position: Tensor, base: Tensor, context: StepContext, cache: TransformerCache
    ) -> Tensor:
        """As `step` for the raster order's group of one slot (1,), behind `base` (1,) tokens in the cache: both
        tensors, so that one compiled call serves every slot. It looks over all of the cache's room."""
        place = base + position
        mask = torch.arange(cache.capacity, device=position.device)[None] <= place
        at = Placement(positions=place, end=cache.capacity, mask=mask)
        return self._step(current, position, context, cache, at)

    def predict_masked(self, current: Tensor, known: Tensor, context: StepContext, cache: TransformerCache) -> Tensor:
        """What the head draws the tokens of a masked model's next step of, (b, n, d): of `current` (b, n[, p]) those
        that are `known` (b, n) bool. The step is to be taken in by `prefill` when all of it is."""
        assert isinstance(self.inputs, MaskedInputs)
        grid = (self.tokens.height, self.tokens.width)
        x = context.conditioning + self.inputs(
            current.unflatten(1, grid)[:, None], known.unflatten(1, grid)[:, None], context.inputs
        ).squeeze(1)
        end = cache.length + self.tokens.tokens_per_step
        at = Placement(positions=slice(cache.length, end), end=end)
        return self.transformer.step(x, cache, at, context.blocks)[0]

    def draw(
        self,
        hidden: Tensor,
        positions: Tensor | int | None,
        context: StepContext,
        noise: Tensor,
        sampler: Sampler,
        *,
        confidence: bool = True,
    ) -> DrawnTokens:
        """Draw the tokens of some positions (m,), of one, or of the whole step, from what `step` or `predict_masked`
        gave for them, by uniform numbers (b, m, head.noise_per_token); without their `confidence` where
        nobody needs it."""
        neighbor_codes = context.neighbor_codes
        if neighbor_codes is not None and positions is not None:
            neighbor_codes = at_positions(neighbor_codes, positions)
        return self.head.draw(hidden, neighbor_codes, noise, sampler, context.head, confidence=confidence)

    # Folders

    def save_pretrained(self, folder: str | Path, adapter: "TokenizerAdapter | None" = None) -> None:
        """Write model.safetensors and config.yaml, and the adapter into `adapter/` if it is given."""
        folder = Path(folder)
        if adapter is not None and self.token_hash not in (None, adapter.token_hash):
            raise ValueError(
                "WorldModel: the adapter must be the one whose tokens the model learned, "
                f"{self.token_hash}, got {adapter.token_hash}."
            )
        token_hash = self.token_hash if adapter is None else adapter.token_hash
        contents = weights_io.Contents(world_model=self.config, token_hash=token_hash)
        weights_io.save(folder, contents, self.state_dict())
        if adapter is not None:
            adapter.save_pretrained(folder / weights_io.ADAPTER_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WorldModel":
        """Read a folder written by `save_pretrained`; in eval mode.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: the folder holds another architecture.
        """
        contents, weights = weights_io.load(Path(folder))
        model = cls(contents.world_model, contents.token_hash)
        load_state_dict_strictly(
            model, weights, who="WorldModel", source=folder, hint=lambda: "; use the config that they were trained with"
        )
        return model.eval()

    # Parts

    def _step(
        self, current: Tensor, positions: Tensor | int, context: StepContext, cache: TransformerCache, at: Placement
    ) -> Tensor:
        assert isinstance(self.inputs, CausalInputs)
        x = self.inputs.at(current, positions, self.step_inputs.narrow, context.inputs)
        return self.transformer.step(at_positions(context.conditioning, positions) + x, cache, at, context.blocks)[0]

    def _input_tables(self) -> InputTables:
        return InputTables(wide=self.inputs.wide.tables(), narrow=self.step_inputs.narrow.tables())

    def _first(self, cache: TransformerCache, batch: int, steps: int) -> Tensor:
        """Which of the next steps of each row have none before them, (b, T) bool."""
        n = self.tokens.tokens_per_step
        step = cache.length // n + torch.arange(steps, device=self.device)
        begin = torch.zeros(1, dtype=torch.int64, device=self.device) if cache.begin is None else cache.begin // n
        return (step <= begin[:, None]).expand(batch, steps)

    def _nothing(self, batch: int) -> Tensor:
        """A step of tokens that stand for none, (b, H, W[, p])."""
        shape = (batch, self.tokens.height, self.tokens.width)
        if self.tokens.patch_dim is None:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.zeros(*shape, self.tokens.patch_dim, device=self.device, dtype=self.dtype)

    def _neighbor_codes(self, codes: Tensor) -> Tensor | None:
        """The codes that steps 1 .. T-1 may point at, (b, T - 1, H, W, c)."""
        if not self.config.copy_size:
            return None
        return local_window(codes[:, :-1], self.config.copy_size)

    def _check_boundary(self, cache: TransformerCache, previous: Tensor | None) -> None:
        """Whole steps begin where others end, and `previous` is told but at the start of a window."""
        if cache.length % self.tokens.tokens_per_step or (cache.length == 0) != (previous is None):
            raise ValueError(
                "WorldModel: a step must begin where another ends, knowing it unless the cache is empty; "
                f"the cache holds {cache.length} tokens, {self.tokens.tokens_per_step} make a step, and "
                f"previous {'was not' if previous is None else 'was'} given."
            )

    def _checked_window(self, tokens: Tensor) -> Tensor:
        tokens = self._checked(tokens)
        if tokens.shape[1] > self.config.max_steps:
            raise ValueError(
                f"WorldModel: a window must have at most {self.config.max_steps} latent steps (max_steps), "
                f"got {tokens.shape[1]}."
            )
        return tokens

    def _checked(self, tokens: Tensor) -> Tensor:
        """Tokens that fit the model; patches in its dtype."""
        grid, patch_dim = (self.tokens.height, self.tokens.width), self.tokens.patch_dim
        if patch_dim is None and (tokens.ndim != 4 or tokens.shape[2:] != grid or tokens.is_floating_point()):
            raise ValueError(
                f"WorldModel: codes must be integers of shape (b, T, {grid[0]}, {grid[1]}), got "
                f"{tokens.dtype} of {tuple(tokens.shape)}."
            )
        if patch_dim is not None and (tokens.shape[2:] != (*grid, patch_dim) or not tokens.is_floating_point()):
            raise ValueError(
                f"WorldModel: patches must be floats of shape (b, T, {grid[0]}, {grid[1]}, {patch_dim}), got "
                f"{tokens.dtype} of {tuple(tokens.shape)}."
            )
        return tokens if patch_dim is None else tokens.to(self.dtype)
