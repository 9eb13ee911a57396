"""What a world model is made of, and made for: its sizes, and the tokens and actions that it speaks."""

from dataclasses import dataclass, field, replace
from math import prod

from world_model.actions import ActionSpec
from world_model.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """The facts about its tokens that shape a world model; a token store knows them
    (`world_model.data.token_spec`)."""

    codebook_size: int
    height: int  # rows of a latent step
    width: int  # columns
    temporal_factor: int  # frames of a latent step, but the first
    fsq_levels: tuple[int, ...] | None = None  # of an FSQ codebook, the least significant digit first
    actions: ActionSpec = field(default_factory=ActionSpec)

    def __post_init__(self) -> None:
        for name in ("codebook_size", "height", "width", "temporal_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"TokenSpec: {name} must be at least 1, got {getattr(self, name)}.")
        if self.fsq_levels is not None and prod(self.fsq_levels) != self.codebook_size:
            raise ValueError(
                f"TokenSpec: fsq_levels must multiply to codebook_size, {self.codebook_size}, got "
                f"{list(self.fsq_levels)}."
            )

    @property
    def tokens_per_step(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Architecture of a world model. `tokens` may be left out where it is taken from a token store."""

    tokens: TokenSpec | None = None
    max_steps: int = 8  # context, in latent steps
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    previous_neighbourhood: int = 3  # how far around each slot the step before is told: odd, 0 for not at all
    copy_neighbourhood: int = 1  # as far may a slot point at a token of the step before: odd, 0 for not at all
    code_width: int = 64  # width of the codes' embeddings in the neighbourhood
    action_width: int = 32
    rotary_base: float = 100.0
    corruption: float = 0.0  # in training, up to this share of a clip's input tokens is replaced by random codes
    action_dropout: float = 0.0  # in training, this share of steps is not told its actions

    def __post_init__(self) -> None:
        for name in ("max_steps", "code_width", "action_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"WorldModelConfig: {name} must be at least 1, got {getattr(self, name)}.")
        for name in ("previous_neighbourhood", "copy_neighbourhood"):
            size = getattr(self, name)
            if size < 0 or (size > 0 and size % 2 == 0):
                raise ValueError(f"WorldModelConfig: {name} must be odd, or 0 for none, got {size}.")
        for name in ("corruption", "action_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"WorldModelConfig: {name} must be in [0, 1], got {getattr(self, name)}.")
        if self.rotary_base <= 1:
            raise ValueError(f"WorldModelConfig: rotary_base must be above 1, got {self.rotary_base}.")

    def for_tokens(self, tokens: TokenSpec) -> "WorldModelConfig":
        """This architecture for the given tokens; a ValueError if it was set for others."""
        if self.tokens is not None and self.tokens != tokens:
            raise ValueError(
                f"WorldModelConfig: tokens must be those of the data, {tokens}, got {self.tokens}; leave "
                "them out of the config, or write the store anew with the tokenizer meant."
            )
        return replace(self, tokens=tokens)
