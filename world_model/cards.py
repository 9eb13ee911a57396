"""What a world model's card says of it and of the tokenizer of its tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from vidtok_plugin.adapter.card import named_tokenizer_rows
from vidtok_plugin.common.model_card import PLACE, ModelFacts
from world_model.architecture import TokenSpec, WorldModelConfig

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

ALONE = "from world_model import WorldModel\n\nmodel = WorldModel.from_pretrained({place})"
WITH_ADAPTER = """from world_model import load_world, rollout

model, adapter = load_world({place})
# result = rollout(model, adapter, prompt=video, actions=actions, num_frames=32)"""


def world_facts(
    config: WorldModelConfig, weights: Mapping[str, Tensor], adapter: "TokenizerAdapter | None"
) -> ModelFacts:
    """The facts of the card of a world model, alone or with its adapter."""
    tokens = config.tokens
    acted = tokens is not None and tokens.actions.kind != "none"
    kinds = ("world-model", "video", "video-generation", *(("action-conditioned",) if acted else ()))
    of_tokenizer = [] if adapter is None else named_tokenizer_rows(adapter.tokenizer)
    return ModelFacts(
        title="World model of video tokens",
        summary="A transformer over the tokens of a video"
        + (" and the actions of whoever plays it" if acted else "")
        + ": it imagines how the video goes on.",
        tags=("vidtok", *kinds, config.prediction),
        architecture=[*_rows(config, sum(tensor.numel() for tensor in weights.values())), *of_tokenizer],
        load=(ALONE if adapter is None else WITH_ADAPTER).format(place=PLACE),
    )


def _rows(config: WorldModelConfig, parameters: int) -> list[tuple[str, str]]:
    sizes = config.transformer
    rows = [
        ("transformer", f"depth {sizes.depth}, width {sizes.width}, {sizes.heads} heads"),
        ("prediction", config.prediction),
        ("context", f"{config.max_steps} latent steps"),
        ("parameters", f"{parameters:,}"),
    ]
    if config.tokens is not None:
        rows += _token_rows(config.tokens)
    if config.outcomes is not None:
        predicted = [name for name in ("rewards", "ends") if getattr(config.outcomes, name)]
        rows.append(("also predicts", " and ".join(predicted)))
    if config.state is not None:
        rows.append(("states", f"{config.state.size} components, read and predicted"))
    return rows


def _token_rows(tokens: TokenSpec) -> list[tuple[str, str]]:
    kind = f"{tokens.codebook_size:,} codes" if tokens.codebook_size is not None else f"patches of {tokens.patch_dim}"
    actions = {
        "none": "none",
        "discrete": f"one of {tokens.actions.size} a frame",
        "continuous": f"{tokens.actions.size} numbers a frame",
        "mixed": f"{tokens.actions.size} numbers and choices a frame",
    }
    return [
        ("tokens", f"{tokens.height} x {tokens.width} a latent step: {kind}"),
        ("latent step", f"{tokens.temporal_factor} frames"),
        ("actions", actions[tokens.actions.kind]),
    ]
