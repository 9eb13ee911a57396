"""The world model: a transformer over a video's tokens that predicts each from what came before it.

A token is predicted from the latent steps before its own and their states, from the tokens of its own step that are
known, and from the actions up to its step. Which are known depends on the kind of model: see `prediction/causal.py` and
`prediction/masked.py`. The first step of a window has neither a step before it nor actions, even if its recording
begins earlier, so that any segment of an episode can serve as context.

Shapes: b clips, T latent steps, H W rows and columns, n = H * W positions of a step, m some of them, d width, f frames
a step, s components of a frame's state, k factors. Tokens are codes (b, T, H, W), or patches (b, T, H, W, p).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor, nn

from vidtok_plugin.common.hub_push import PushedToHub, PushKeywords, PushOptions
from vidtok_plugin.common.hub_source import HubOptions, saved_folder
from vidtok_plugin.common.model_card import CardInfo
from vidtok_plugin.common.normalization import Normalization
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.state_dict import build_with_weights
from world_model.actions import GroupedActions
from world_model.architecture import FlowConfig, WorldModelConfig
from world_model.heads.base import DrawnTokens, TokenScores
from world_model.heads.codes import CodeHead
from world_model.heads.flow import FlowHead
from world_model.heads.outcomes import OutcomeHead, Outcomes, OutcomeTargets
from world_model.heads.sampler import Sampler
from world_model.heads.state import StateHead
from world_model.inputs.action_embedding import with_statistics
from world_model.inputs.embedding import CodeTable
from world_model.inputs.neighborhood import local_window
from world_model.inputs.positions import (
    CausalInputs,
    InputTables,
    MaskedInputs,
    StepInputs,
    at_positions,
    window_rotation,
)
from world_model.inputs.state import checked_state
from world_model.inputs.token_checks import checked_tokens
from world_model.prediction.base import StepContext, WindowInputs
from world_model.prediction.causal import CausalPrediction
from world_model.prediction.masked import MaskedPrediction
from world_model.transformer.cache import TransformerCache
from world_model.transformer.rotary import Rotation
from world_model.transformer.transformer import DecodeBlocks, Transformer
from world_model.weights import SAVED_FILES, WORLD_FILES, Contents, read_folder, write_folder
from world_model.window_scores import WindowLosses, head_inputs, predicted_states, score_window, window_losses

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

USUAL = 3.0  # deviations of actions from their mean
ACTIONS = "step_inputs.actions."  # before the names of the weights of the embedding of actions


class WorldModel(PushedToHub, nn.Module):
    """Predicts each token of a video from those before it and the actions up to its step.

    `prediction` holds what causal and masked models do differently; the rest is common to both.

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

    saved_files = WORLD_FILES

    def __init__(self, config: WorldModelConfig, token_hash: str | None = None) -> None:
        super().__init__()
        if config.tokens is None:
            raise ValueError(
                "WorldModel: the config's tokens must be set; take them from a store: "
                "config.for_tokens(token_spec(store.metadata))."
            )
        self.config = config
        self.tokens = tokens = config.tokens
        self.token_hash = token_hash  # of what determines the tokens: the decoder may be trained further
        sizes = config.transformer
        self.step_inputs = StepInputs(config)
        self.inputs = inputs = MaskedInputs(config) if config.prediction == "masked" else CausalInputs(config)
        self.transformer = Transformer(sizes, window_rotation(config, config.max_steps))
        self.prediction: CausalPrediction | MaskedPrediction
        if isinstance(inputs, MaskedInputs):
            self.prediction = MaskedPrediction(tokens, inputs, self.transformer)
        else:
            self.prediction = CausalPrediction(config, inputs, self.step_inputs.narrow, self.transformer)
        self.head: CodeHead | FlowHead
        if tokens.patch_dim is not None:
            self.head = FlowHead(tokens.patch_dim, sizes.width, config.flow or FlowConfig())
        else:
            self.head = CodeHead(config.factors(), sizes.width, config.copy_size)
        self.outcomes: OutcomeHead | None = None
        if config.outcomes is not None:
            self.outcomes = OutcomeHead(config.outcomes, sizes.width, config.code_width, tokens.temporal_factor)
        self.state_head: StateHead | None = None
        self.state_normalization: Normalization | None = None  # by the statistics of the training split
        if config.state is not None:
            if config.state.size is None:
                raise ValueError("WorldModel: state.size must be set; take it from a store: store.state_size.")
            self.state_head = StateHead(config.state, sizes.width, config.code_width, tokens.temporal_factor)
            self.state_normalization = Normalization(config.state.size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.step_inputs.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.step_inputs.place.dtype

    @property
    def factor_sizes(self) -> tuple[int, ...] | None:
        """The number of values of each factor of a code, one for a flat vocabulary; None for continuous tokens."""
        return self.head.sizes if isinstance(self.head, CodeHead) else None

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Parameters with one vector per code, action or position, which an optimizer may treat differently."""
        holders = [module for module in self.modules() if isinstance(module, CodeTable | nn.Embedding)]
        return [self.step_inputs.place, *(table for module in holders for table in module.parameters())]

    @property
    def action_normalization(self) -> Normalization | None:
        """By which actions of several components are normalized; None for single choices, and without actions."""
        return None if self.step_inputs.actions is None else self.step_inputs.actions.normalize

    def usual_actions(self) -> tuple[Tensor, Tensor]:
        """Low and high (a,) of each component of actions, on the CPU, for whom knows no bounds: three deviations around
        the mean of the training data, or -1 and 1 of a model that does not know them."""
        normalization = self.action_normalization
        if normalization is None:
            raise ValueError("WorldModel: its actions must have components for bounds of these, got single choices.")
        mean, std = normalization.mean.cpu(), normalization.std.cpu()
        reach = USUAL * std if bool(mean.any()) or bool((std != 1).any()) else std
        return mean - reach, mean + reach

    def set_action_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalize continuous components of actions by this mean and deviation (a,); saved with the weights."""
        assert self.step_inputs.actions is not None
        self.step_inputs.actions.set_statistics(mean, std)

    # Whole windows

    def forward(
        self,
        tokens: Tensor,
        actions: GroupedActions | None = None,
        corruption: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (head inputs) for the tokens of a window.

        A causal model gives (b, T, H, W, d); a masked one gives (b, T - 1, H, W, d), those of the steps after the
        first, with none of a step's own tokens known. For other orders and known tokens see `prediction.hidden`.
        """
        return self.prediction.hidden(self.window_inputs(tokens, actions, corruption, state))

    def window_inputs(
        self,
        tokens: Tensor,
        actions: GroupedActions | None = None,
        corruption: Tensor | None = None,
        state: Tensor | None = None,
    ) -> WindowInputs:
        """A window for `prediction`: at most `max_steps` steps for a masked model.

        In longer ones each step of a causal model sees the `max_steps - 1` before it, as in rollouts with a rolling
        context.

        `corruption` (b,) conditions the model on the fraction of replaced tokens, relative to the config's maximum.
        `state` (b, T, f, s) holds the states of the window's frames in their own units, NaN where unknown; all are
        without it. Of a window's first step only the last frame's counts, as in a prompt.
        """
        tokens = self.checked(tokens)
        if tokens.shape[1] > self.config.max_steps and self.config.prediction == "masked":
            raise ValueError(
                f"WorldModel: a masked model's window must have at most {self.config.max_steps} latent steps "
                f"(max_steps), got {tokens.shape[1]}."
            )
        age = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        if state is not None:
            state = torch.cat([torch.full_like(state[:, :1], torch.nan), state[:, :-1]], dim=1)
        return self._window_inputs(tokens, tokens[:, 0], age, actions, corruption, state)

    def logits(self, codes: Tensor, actions: GroupedActions | None = None, state: Tensor | None = None) -> list[Tensor]:
        """Logits of every factor, given the true ones before it, for the tokens of `forward`: (b, T, H, W, V), or
        (b, T - 1, H, W, V) of a masked model."""
        if not isinstance(self.head, CodeHead):
            raise ValueError("WorldModel: continuous tokens have no logits; use score.")
        codes = self.checked(codes)
        hidden, tables = self(codes, actions, None, state), self.head.tables()
        given = codes[:, codes.shape[1] - hidden.shape[1] :]
        start = hidden.shape[1] - (codes.shape[1] - 1)  # a window's first step has none before it to copy from
        first = self.head.logits(hidden[:, :start], None, given[:, :start], tables)
        later = self.head.logits(hidden[:, start:], self.neighbor_codes(codes), given[:, start:], tables)
        return [torch.cat(steps, dim=1) for steps in zip(first, later, strict=True)]

    def score(
        self,
        tokens: Tensor,
        actions: GroupedActions | None = None,
        *,
        diagonal_offset: int | None = None,
        state: Tensor | None = None,
    ) -> TokenScores:
        """Losses of the tokens of steps 1 .. T-1, in raster order, or in diagonal order with `diagonal_offset`.

        A window's first step is context only, like a rollout's prompt. In training mode the inputs are corrupted
        and actions dropped as the config says, and the scores have no `correct`. A masked model is scored given a
        random subset of each step's tokens, in eval mode the same subset in each call.
        """
        return score_window(self, tokens, actions, state, diagonal_offset=diagonal_offset).scores

    def loss(self, tokens: Tensor, actions: GroupedActions | None = None, valid: Tensor | None = None) -> Tensor:
        """Mean of the scores' token losses over the steps that `valid` (b, T) marks; over all of them without it.

        Under DDP the mean over processes is the mean over all their steps, even if some have more steps than others.
        """
        return self.losses(tokens, actions, valid).tokens

    def losses(
        self,
        tokens: Tensor,
        actions: GroupedActions | None = None,
        valid: Tensor | None = None,
        outcomes: OutcomeTargets | None = None,
        state: Tensor | None = None,
    ) -> WindowLosses:
        """`loss`, and those of the outcomes and states that the model predicts: means over the same steps, 0 where
        unknown. `state` is as in `window_inputs`."""
        return window_losses(self, tokens, actions, valid, outcomes, state)

    def window_outcomes(
        self, tokens: Tensor, actions: GroupedActions | None = None, state: Tensor | None = None
    ) -> Outcomes:
        """The outcomes of steps 1 .. T-1 of a window of real tokens: rewards (b, T - 1, f), ends (b, T - 1)."""
        if self.outcomes is None:
            raise ValueError("WorldModel: it was built without outcomes; train one with model.outcomes in its config.")
        outcomes: Outcomes = self.outcomes(*head_inputs(self, score_window(self, tokens, actions, state), tokens))
        return outcomes

    def window_states(
        self, tokens: Tensor, actions: GroupedActions | None = None, state: Tensor | None = None
    ) -> Tensor:
        """The predicted states (b, T - 1, f, s) of steps 1 .. T-1 of a window of real tokens, in their own units; each
        from the states of the steps before it."""
        if self.state_head is None or self.state_normalization is None:
            raise ValueError("WorldModel: it was built without states; train one with model.state in its config.")
        scored = score_window(self, tokens, actions, state)
        return self.state_normalization.undo(predicted_states(self, self.state_head, scored, tokens))

    def step_states(self, hidden: Tensor, step: Tensor, previous: Tensor, context: StepContext) -> Tensor | None:
        """The states (b, f, s) of a step that was drawn, in their own units; None if the model predicts none.

        Shapes are those of `step_outcomes`; `context` is the step's, perhaps with more rows after these.
        """
        if self.state_head is None or self.state_normalization is None:
            return None
        assert context.past_state is not None
        own, before = (self.step_inputs.narrow(x, context.tables.narrow) for x in (step, previous))
        conditioning, past = (x[: len(hidden)] for x in (context.conditioning, context.past_state))
        return self.state_normalization.undo(self.state_head(hidden, own, before, conditioning, past))

    def step_outcomes(self, hidden: Tensor, step: Tensor, previous: Tensor, tables: InputTables) -> Outcomes | None:
        """The outcomes of a step that was drawn, of rewards (b, f) and ends (b,); None if the model predicts none.

        hidden: (b, n, d), from which the tokens `step` (b, n[, p]) were drawn. previous: (b, n[, p]), the step before.
        """
        if self.outcomes is None:
            return None
        own, before = (self.step_inputs.narrow(x, tables.narrow) for x in (step, previous))
        outcomes: Outcomes = self.outcomes(hidden, own, before)
        return outcomes

    # Step by step

    def init_cache(
        self,
        batch: int,
        padding: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        steps: int | None = None,
    ) -> TransformerCache:
        """An empty cache for `steps` latent steps, by default `max_steps`, on the model's device and in its dtype.

        `padding` (b,) is the number of padding steps at the beginning of each row: pasts of different lengths are
        aligned at their ends.
        """
        positions = self.tokens.tokens_per_step
        return self.transformer.init_cache(
            batch,
            (steps or self.config.max_steps) * positions,
            begin=None if padding is None else padding * positions,
            device=device or self.device,
            dtype=dtype or self.dtype,
        )

    def rotation(self, steps: int, first_step: int = 0) -> Rotation:
        """The rotation at the positions of `steps` latent steps from `first_step` on, for a cache that holds them."""
        return window_rotation(self.config, steps, first_step).to(self.transformer.rotary_cos)

    def emptied(self, cache: TransformerCache, padding: Tensor | None = None) -> TransformerCache:
        """The cache that `init_cache` would give, in the same buffers."""
        begin = None if padding is None else padding * self.tokens.tokens_per_step
        return replace(cache, length=0, begin=begin, rotation=None)

    def prefill(
        self,
        tokens: Tensor,
        actions: GroupedActions | None,
        cache: TransformerCache,
        previous: Tensor | None = None,
        past_state: Tensor | None = None,
        *,
        validate: bool | None = None,
    ) -> TransformerCache:
        """Append whole steps (b, T, H, W[, p]) to the cache, whose last step is `previous` (b, H, W[, p]).

        `past_state` (b, T, f, s) holds the states of the step before each; NaN, or left out, where unknown.
        `validate`: whether the tokens' values are checked, which waits for the device; by default on the CPU only.
        """
        self._check_boundary(cache, previous)
        tokens = self.checked(tokens, validate=validate)
        cache.check_room(tokens.shape[1] * self.tokens.tokens_per_step)
        before = tokens[:, 0] if previous is None else previous
        age = self._age(cache, len(tokens), tokens.shape[1])
        return self.prediction.prefill(self._window_inputs(tokens, before, age, actions, None, past_state), cache)

    def step_context(
        self,
        previous: Tensor | None,
        actions: GroupedActions | None,
        cache: TransformerCache,
        blocks: DecodeBlocks | None = None,
        past_state: Tensor | None = None,
    ) -> StepContext:
        """The context for drawing the next step, from the step before it and its own actions (of one step).

        `previous` is (b, H, W[, p]), or None at the start of a window, and `past_state` (b, f, s) its states; they are
        unknown without it. The context is valid for this cache only. `blocks` are the `transformer.decode_blocks` of
        the cache, made here unless given.
        """
        self._check_boundary(cache, previous)
        cache.check_room(self.tokens.tokens_per_step)
        tables = self._input_tables()
        before = self._nothing(cache.batch) if previous is None else previous
        age = self._age(cache, cache.batch, 1)
        state = self._past_state(None if past_state is None else past_state[:, None], age)
        conditioning = self.step_inputs(before[:, None], age <= 0, actions, None, tables, state)
        neighbor_codes = None
        if self.config.copy_size and previous is not None:
            neighbor_codes = local_window(previous, self.config.copy_size).flatten(1, 2)
        return StepContext(
            conditioning=conditioning[:, 0],
            neighbor_codes=neighbor_codes,
            tables=tables,
            head_tables=self.head.tables(),
            past_state=None if state is None else state[:, 0],
            blocks=self.transformer.decode_blocks(cache) if blocks is None else blocks,
        )

    def draw(
        self,
        hidden: Tensor,
        index: Tensor | int | None,
        context: StepContext,
        noise: Tensor,
        sampler: Sampler,
        *,
        confidence: bool = True,
        entropy: bool = False,
    ) -> DrawnTokens:
        """Draw tokens from their hidden states, which `prediction` gave.

        `index` is some positions (m,) of the step, a single one, or None for the whole step. `noise` is uniform
        numbers (b, m, head.noise_per_token). `confidence=False` leaves out the tokens' confidence, and `entropy` adds
        their entropies.
        """
        neighbor_codes = context.neighbor_codes
        if neighbor_codes is not None and index is not None:
            neighbor_codes = at_positions(neighbor_codes, index)
        return self.head.draw(
            hidden, neighbor_codes, noise, sampler, context.head_tables, confidence=confidence, entropy=entropy
        )

    # Folders

    def save_pretrained(
        self,
        folder: str | Path,
        adapter: "TokenizerAdapter | None" = None,
        *,
        card: CardInfo | Literal[False] | None = None,
    ) -> None:
        """Write model.safetensors, config.yaml and a model card, and the adapter into `adapter/` if it is given.

        card: what the card says beyond the architecture; False writes none. A card that was edited is kept.
        """
        folder = user_path(folder)
        if adapter is not None and self.token_hash not in (None, adapter.token_hash):
            raise ValueError(
                "WorldModel: the adapter must be the one whose tokens the model learned, "
                f"{self.token_hash}, got {adapter.token_hash}."
            )
        token_hash = self.token_hash if adapter is None else adapter.token_hash
        contents = Contents(world_model=self.config, token_hash=token_hash)
        write_folder(folder, contents, self.state_dict(), adapter, card)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "WorldModel":
        """Read what `save_pretrained` or `push_to_hub` wrote, without an adapter; in eval mode.

        source: a folder, or `user/name` on the Hugging Face hub. A folder comes first. For `revision`, `subfolder`,
            `token` and `local_files_only` see `load_world`.

        Raises:
            FileNotFoundError: the folder or a file in it is missing, or the download failed.
            PermissionError: the login may not read the repository.
            ValueError: the folder holds another architecture, is damaged, or its weights are NaN, infinite or huge.
        """
        options = HubOptions(revision=revision, subfolder=subfolder, token=token, local_files_only=local_files_only)
        folder = saved_folder("WorldModel", source, options, wanted=SAVED_FILES, needed=SAVED_FILES)
        contents, weights = read_folder(folder)
        if (tokens := contents.world_model.tokens) is not None:
            weights = with_statistics(weights, tokens.actions, ACTIONS)
        model = build_with_weights(
            lambda: cls(contents.world_model, contents.token_hash),
            weights,
            who="WorldModel",
            source=source,
            hint=lambda: "; use the config that they were trained with",
        )
        normalization = model.action_normalization
        if normalization is not None and not bool((normalization.std > 0).all()):
            raise ValueError(
                f"WorldModel: {ACTIONS}normalize.std in {source} must be above 0, got "
                f"{normalization.std.min().item()}; the weights are damaged: fetch them again."
            )
        return model.eval()

    def push_to_hub(
        self,
        repository: str,
        adapter: "TokenizerAdapter | None" = None,
        *,
        card: CardInfo | None = None,
        **options: Unpack[PushKeywords],
    ) -> str:
        """Save the model, and the adapter if it is given, into a repository on the Hugging Face hub, in one commit.

        repository: `user/name`. `load_world` loads it if the adapter is there, and `WorldModel.from_pretrained` in any
            case. For a folder with prompts use `world-model push`.
        card, options, returns and errors: as of `VidTok.push_to_hub`.
        """
        return self._push(repository, PushOptions(**options), adapter, card=card)

    # Inputs

    def _window_inputs(
        self,
        tokens: Tensor,
        previous: Tensor,
        age: Tensor,
        actions: GroupedActions | None,
        corruption: Tensor | None,
        past_state: Tensor | None,
    ) -> WindowInputs:
        """The inputs of whole steps that follow `previous`, which is ignored where `age` (b, T), the number of steps
        before, is 0 or less."""
        tables = self._input_tables()
        before = torch.cat([previous[:, None], tokens[:, :-1]], dim=1)
        state = self._past_state(past_state, age)
        conditioning = self.step_inputs(before, age <= 0, actions, corruption, tables, state)
        return WindowInputs(tokens=tokens, conditioning=conditioning, tables=tables, past_state=state)

    def _past_state(self, past: Tensor | None, age: Tensor) -> Tensor | None:
        """Normalized states (b, T, f, s) of the step before each, NaN where there is no step or frame, or unknown."""
        if self.state_normalization is None:
            if past is not None:
                raise ValueError("WorldModel: it was built without states (model.state); leave them out.")
            return None
        size, f = len(self.state_normalization.mean), self.tokens.temporal_factor
        if past is None:
            return torch.full((*age.shape, f, size), torch.nan, device=self.device)
        past = self.state_normalization(checked_state(past, size, f, *age.shape))
        frame = torch.arange(f, device=age.device)
        absent = (age <= 0)[..., None] | ((age == 1)[..., None] & (frame < f - 1))  # a first step has a single frame
        return past.masked_fill(absent[..., None], torch.nan)

    def _input_tables(self) -> InputTables:
        return InputTables(wide=self.inputs.wide.tables(), narrow=self.step_inputs.narrow.tables())

    def _age(self, cache: TransformerCache, batch: int, steps: int) -> Tensor:
        """How many steps of a row are before each of its next ones, (b, T); below 0 of padding."""
        n = self.tokens.tokens_per_step
        step = cache.length // n + torch.arange(steps, device=self.device)
        begin = torch.zeros(1, dtype=torch.int64, device=self.device) if cache.begin is None else cache.begin // n
        return (step - begin[:, None]).expand(batch, steps)

    def _nothing(self, batch: int) -> Tensor:
        """A step of zeros, (b, H, W[, p])."""
        shape = (batch, self.tokens.height, self.tokens.width)
        if self.tokens.patch_dim is None:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.zeros(*shape, self.tokens.patch_dim, device=self.device, dtype=self.dtype)

    def neighbor_codes(self, codes: Tensor) -> Tensor | None:
        """The codes that the steps 1 .. T-1 may copy, (b, T - 1, H, W, c)."""
        if not self.config.copy_size:
            return None
        return local_window(codes[:, :-1], self.config.copy_size)

    def _check_boundary(self, cache: TransformerCache, previous: Tensor | None) -> None:
        """A ValueError unless the cache ends with a whole step, and `previous` is given except for an empty cache."""
        if cache.length % self.tokens.tokens_per_step or (cache.length == 0) != (previous is None):
            raise ValueError(
                "WorldModel: the cache must end with a whole step, and previous must be that step, or None for a cache "
                f"without any; got {cache.length} tokens in the cache, {self.tokens.tokens_per_step} per step, and "
                f"{'no' if previous is None else 'a'} previous step."
            )

    def checked(self, tokens: Tensor, *, validate: bool | None = None) -> Tensor:
        """Tokens (b, T, H, W[, p]) of the model's kind and size, patches in its dtype; else a ValueError."""
        return checked_tokens(tokens, self.tokens, self.dtype, validate=validate)
