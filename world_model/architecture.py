"""The architecture of a world model: its sizes, and the kind of its tokens and actions."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

from vidtok_plugin.adapter.vocabulary import factor_levels
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.tokenizer.architecture import MAX_CODES
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.preparation import Preparation
from world_model.actions import ActionSpec
from world_model.transformer.block import MAX_DEPTH, TransformerConfig

FACTORED_ABOVE = 8192  # codes, for vocabulary "auto"
# Far beyond any model that fits a machine; a stranger's config must not keep one busy.
MAX_SIZE = 2**16
MAX_POSITIONS = 2**20  # of a context

Prediction = Literal["causal", "masked"]
VocabularyKind = Literal["auto", "flat", "factored"]


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """The kind and sizes of tokens and actions; `world_model.data.token_spec` reads them from a token store.

    Discrete tokens are codes below `codebook_size`; continuous ones are patches of `patch_dim` values. `preparation` is
    how the frames were brought to their size and rate, if they were; recorded prompts are brought there likewise.
    """

    codebook_size: int | None = None
    patch_dim: int | None = None
    height: int  # rows of a latent step
    width: int  # columns
    temporal_factor: int  # frames of each latent step after the first
    fsq_levels: tuple[int, ...] | None = None  # of an FSQ codebook, the least significant digit first
    actions: ActionSpec = field(default_factory=ActionSpec)
    preparation: Preparation | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.codebook_size is None) == (self.patch_dim is None):
            raise ValueError(
                "TokenSpec: either codebook_size (for discrete tokens) or patch_dim (for continuous ones) must be set, "
                f"got {self.codebook_size} and {self.patch_dim}."
            )
        for name in ("codebook_size", "patch_dim", "height", "width", "temporal_factor"):
            value, largest = getattr(self, name), MAX_CODES if name == "codebook_size" else MAX_SIZE
            if value is not None and not 1 <= value <= largest:
                raise ValueError(f"TokenSpec: {name} must be 1 to {largest}, got {value}.")
        if self.fsq_levels is not None and (not self.fsq_levels or min(self.fsq_levels) < 2):
            raise ValueError(f"TokenSpec: every one of fsq_levels must be 2 or more, got {list(self.fsq_levels)}.")
        if self.fsq_levels is not None and prod(self.fsq_levels) != self.codebook_size:
            raise ValueError(
                f"TokenSpec: fsq_levels must multiply to codebook_size, {self.codebook_size}, got "
                f"{list(self.fsq_levels)}."
            )

    def prepare(self, episode: Episode) -> Episode:
        """A recorded episode at the size and rate of the model's data."""
        return episode if self.preparation is None else self.preparation.of(episode)

    @property
    def kind(self) -> Literal["discrete", "continuous"]:
        """Codes or patches."""
        return "continuous" if self.codebook_size is None else "discrete"

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a latent step, H W."""
        return self.height * self.width


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The head of continuous tokens, an MLP trained by flow matching."""

    width: int = 256
    depth: int = 3
    repeats: int = 4  # noise levels per token in a training batch
    sampling_steps: int = 12  # from noise to a token by Heun's method: two calls per step, one for the last

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("width", "depth", "repeats", "sampling_steps"):
            largest = MAX_DEPTH if name == "depth" else MAX_SIZE
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"FlowConfig: {name} must be 1 to {largest}, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig:
    """The head of outcomes: which ones it predicts, and the weights of their losses beside that of the tokens.

    The loss of rewards is a cross entropy in nats per frame, that of ends one in nats per latent step.
    """

    rewards: bool = True  # of each frame
    ends: bool = True  # whether the episode ends with the step
    width: int = 128
    largest_reward: float = 1000.0  # of a frame, positive or negative
    reward_weight: float = 1.0
    end_weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.rewards or self.ends):
            raise ValueError("OutcomeConfig: rewards or ends must be true; leave outcomes out to predict neither.")
        if not 1 <= self.width <= MAX_SIZE:
            raise ValueError(f"OutcomeConfig: width must be 1 to {MAX_SIZE}, got {self.width}.")
        for name in ("largest_reward", "reward_weight", "end_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"OutcomeConfig: {name} must be above 0, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class StateConfig:
    """States of frames: they condition the steps after them, and a head predicts those of the next step.

    The loss is the squared error of normalized states, a mean over a frame's components.
    """

    size: int | None = None  # components of a state; taken from the store
    width: int = 128  # of the embedding and of the head
    weight: float = 1.0  # of the loss beside that of the tokens
    dropout: float = 0.1  # fraction of windows with unknown states in training, so that a prompt may lack them

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("size", "width"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIZE:
                raise ValueError(f"StateConfig: {name} must be 1 to {MAX_SIZE}, got {value}.")
        if self.weight <= 0:
            raise ValueError(f"StateConfig: weight must be above 0, got {self.weight}.")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"StateConfig: dropout must be in [0, 1], got {self.dropout}.")


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Architecture of a world model. `tokens` may be left out if it comes from a token store.

    `prediction`: `causal` models predict each token from those before it in raster order, and are decoded in raster
    or diagonal order; `masked` ones predict a latent step's tokens in any order, many at once. `vocabulary`: `flat` has
    one logit for each code, `factored` a distribution for each of two factors, the second given the first; `auto` is
    factored above 8,192 codes.

    `previous_neighbourhood` and `copy_neighbourhood` are sizes of a local window around each position in the previous
    step: of the tokens that the position is conditioned on (odd), and of those that it may copy (odd, or 0 for none).

    Example:
        >>> tokens = TokenSpec(codebook_size=8**6, fsq_levels=(8,) * 6, height=8, width=8, temporal_factor=4)
        >>> [size for size, levels in WorldModelConfig(tokens=tokens).factors()]
        [512, 512]
    """

    tokens: TokenSpec | None = None
    max_steps: int = 8  # context, in latent steps
    trained_steps: int | None = None  # of the last training's windows, if more than max_steps; it sets this
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    prediction: Prediction = "causal"
    vocabulary: VocabularyKind = "auto"
    flow: FlowConfig | None = None  # of continuous tokens; None for the default
    outcomes: OutcomeConfig | None = None  # None: predicts no rewards and ends
    state: StateConfig | None = None  # None: reads and predicts no states
    previous_neighbourhood: int = 3
    copy_neighbourhood: int | None = None  # None: 1 for codes, 0 for patches
    code_width: int = 64  # of the embeddings of tokens in the local window
    action_width: int = 32
    rotary_base: float = 100.0
    corruption: float = 0.0  # maximum fraction of a window's tokens replaced in training; the model sees the fraction
    own_draws: float = 0.0  # max. fraction of a window's input tokens that a causal model draws itself in training
    action_dropout: float = 0.0  # fraction of windows, and of the others' steps, with unknown actions in training

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("max_steps", "code_width", "action_width"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"WorldModelConfig: {name} must be 1 to {MAX_SIZE}, got {getattr(self, name)}.")
        if self.trained_steps is not None and self.trained_steps <= self.max_steps:
            raise ValueError(
                f"WorldModelConfig: trained_steps must be above max_steps, {self.max_steps}, got {self.trained_steps}; "
                "leave it out, training sets it."
            )
        if self.previous_neighbourhood < 1 or self.previous_neighbourhood % 2 == 0:
            raise ValueError(
                f"WorldModelConfig: previous_neighbourhood must be odd and positive, got {self.previous_neighbourhood}."
            )
        copy = self.copy_neighbourhood
        if copy is not None and (copy < 0 or (copy > 0 and copy % 2 == 0)):
            raise ValueError(f"WorldModelConfig: copy_neighbourhood must be odd, or 0 for none, got {copy}.")
        for name in ("corruption", "own_draws", "action_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"WorldModelConfig: {name} must be in [0, 1], got {getattr(self, name)}.")
        if self.own_draws and self.prediction == "masked":
            raise ValueError(f"WorldModelConfig: own_draws is for causal models, got {self.own_draws}; leave it out.")
        if self.rotary_base <= 1:
            raise ValueError(f"WorldModelConfig: rotary_base must be above 1, got {self.rotary_base}.")
        if self.tokens is not None:
            self._check_tokens(self.tokens)

    def _check_tokens(self, tokens: TokenSpec) -> None:
        """A context of bounded size, and no settings for the other kind of tokens."""
        if self.max_steps * tokens.tokens_per_step > MAX_POSITIONS:
            raise ValueError(
                f"WorldModelConfig: max_steps times the {tokens.height} x {tokens.width} tokens of a step must be at "
                f"most {MAX_POSITIONS} positions, got {self.max_steps * tokens.tokens_per_step}; lower max_steps."
            )
        if self.action_dropout and tokens.actions.kind == "none":
            raise ValueError(
                f"WorldModelConfig: action_dropout is for tokens with actions, got {self.action_dropout} for none; "
                "leave it out."
            )
        if tokens.kind == "discrete" and self.flow is not None:
            raise ValueError("WorldModelConfig: flow is for continuous tokens; leave it out for codes.")
        if tokens.kind == "continuous" and (self.copy_neighbourhood or self.vocabulary != "auto"):
            raise ValueError(
                "WorldModelConfig: vocabulary and copy_neighbourhood are for codes; leave them out for continuous "
                f"tokens, got {self.vocabulary} and {self.copy_neighbourhood}."
            )
        if self.vocabulary == "factored" and (tokens.fsq_levels is None or len(tokens.fsq_levels) < 2):
            raise ValueError(
                "WorldModelConfig: vocabulary factored needs the tokens' fsq_levels, at least two of them, got "
                f"{tokens.fsq_levels}; use flat."
            )

    @property
    def copy_size(self) -> int:
        """`copy_neighbourhood`, by default 1 for codes and 0 for patches."""
        if self.copy_neighbourhood is not None:
            return self.copy_neighbourhood
        return 1 if self.tokens is not None and self.tokens.kind == "discrete" else 0

    def factors(self) -> tuple[tuple[int, tuple[int, ...] | None], ...]:
        """The size of each factor of a code, and its FSQ levels; a single factor for a flat vocabulary."""
        assert self.tokens is not None and self.tokens.codebook_size is not None
        levels, size = self.tokens.fsq_levels, self.tokens.codebook_size
        large = size > FACTORED_ABOVE and levels is not None and len(levels) > 1
        if levels is not None and (self.vocabulary == "factored" or (self.vocabulary == "auto" and large)):
            return tuple((prod(factor), factor) for factor in factor_levels(levels))
        return ((size, levels),)

    def for_tokens(self, tokens: TokenSpec) -> "WorldModelConfig":
        """This architecture for the given tokens; a ValueError if it was set for others."""
        if self.tokens is not None and self.tokens != tokens:
            raise ValueError(
                f"WorldModelConfig: tokens must be those of the data, {tokens}, got {self.tokens}; leave "
                "them out of the config, or rewrite the store with the intended tokenizer."
            )
        return self if self.tokens is not None else replace(self, tokens=tokens)
