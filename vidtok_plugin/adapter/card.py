"""What an adapter's model card says of it and of its tokenizer."""

from vidtok_plugin.adapter.saving import AdapterConfig
from vidtok_plugin.common.model_card import PLACE, ModelFacts
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.weights.card import tokenizer_facts, tokenizer_rows


def adapter_facts(tokenizer: VidTok, config: AdapterConfig) -> ModelFacts:
    """The facts of an adapter's card."""
    discrete = tokenizer.codebook_size is not None
    of_tokenizer = tokenizer_facts(tokenizer.architecture, tokenizer.state_dict())
    return ModelFacts(
        title=f"Adapter of {of_tokenizer.title}",
        summary="A frozen video tokenizer whose latents are tokens for any generator, exactly and in both directions: "
        f"{'vocabulary ids' if discrete else 'patches of continuous latents'} in raster order (time, row, column).",
        tags=(*of_tokenizer.tags, "video-tokens"),
        architecture=[*adapter_rows(tokenizer, config), *of_tokenizer.architecture],
        load=f"from vidtok_plugin import TokenizerAdapter\n\nadapter = TokenizerAdapter.from_pretrained({PLACE})",
    )


def adapter_rows(tokenizer: VidTok, config: AdapterConfig) -> list[tuple[str, str]]:
    """Names and values of what describes the tokens."""
    if tokenizer.codebook_size is None:
        _, rows, columns = config.patch_size
        return [
            ("tokens", f"patches of {rows} x {columns} latents, {rows * columns * tokenizer.latent_channels} values")
        ]
    special = ", ".join(config.special_tokens) or "none"
    return [
        ("tokens", f"ids below {tokenizer.codebook_size + len(config.special_tokens):,}"),
        ("special tokens, after the codes", special),
    ]


def named_tokenizer_rows(tokenizer: VidTok) -> list[tuple[str, str]]:
    """The rows of a tokenizer on the card of a model of its tokens, each named as the tokenizer's."""
    return [
        (f"tokenizer: {name}", value) for name, value in tokenizer_rows(tokenizer.architecture, tokenizer.state_dict())
    ]
