"""Hashes of an adapter: of everything in it, and of what determines the tokens of a video."""

import json
from collections.abc import Mapping

from torch import Tensor

from vidtok_plugin.adapter.saving import AdapterConfig
from vidtok_plugin.common.config import to_dict, to_yaml
from vidtok_plugin.common.hashing import hash_values
from vidtok_plugin.tokenizer.model import VidTok

_WITHOUT_EFFECT_ON_TOKENS = ("decoder_spatial_levels", "decoder_temporal_levels", "dropout")  # architecture's settings


def adapter_hash(tokenizer: VidTok, config: AdapterConfig, statistics: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tokenizer's weights and architecture, and of the adapter's settings and latent statistics."""
    tensors = {**tokenizer.state_dict(), **statistics}
    return hash_values(tensors, to_yaml(tokenizer.architecture), to_yaml(config))


def token_hash(tokenizer: VidTok, config: AdapterConfig, statistics: Mapping[str, Tensor]) -> str:
    """SHA-256 of what determines a video's tokens: the encoder, the patch size and the latent statistics.

    Training only the decoder leaves it unchanged. So do other special tokens, whose ids follow the codebook.
    """
    weights = tokenizer.state_dict().items()
    tensors = {name: tensor for name, tensor in weights if not name.startswith("decoder.")} | dict(statistics)
    settings = to_dict(tokenizer.architecture) | {"patch_size": config.patch_size}
    relevant = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT_ON_TOKENS}
    return hash_values(tensors, json.dumps(relevant, sort_keys=True))
