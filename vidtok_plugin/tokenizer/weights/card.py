"""What a tokenizer's model card says of its architecture."""

from collections.abc import Mapping

from torch import Tensor

from vidtok_plugin.common.model_card import PLACE, ModelFacts
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.presets import presets


def tokenizer_facts(architecture: Architecture, state_dict: Mapping[str, Tensor]) -> ModelFacts:
    """The facts of a tokenizer's card."""
    arch, kind = architecture, architecture.regularizer.upper()
    name = next((preset.name for preset in presets().values() if preset.architecture == arch), None)
    return ModelFacts(
        title=name or f"VidTok video tokenizer ({kind}, {compression(arch)})",
        summary="A video tokenizer of the [VidTok](https://arxiv.org/abs/2412.13061) family: it compresses video into "
        f"{'codes' if arch.codebook_size else 'latents'} and decodes them back into video"
        f"{', whole or frame by frame' if arch.causal else ''}.",
        tags=("vidtok", "video", "video-tokenizer", arch.regularizer, *(("causal",) if arch.causal else ())),
        architecture=tokenizer_rows(arch, state_dict),
        load=f"from vidtok_plugin import VidTok\n\ntokenizer = VidTok.from_pretrained({PLACE})",
    )


def tokenizer_rows(architecture: Architecture, state_dict: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names and values of what describes the architecture."""
    arch = architecture
    if arch.fsq_levels is not None:
        latents = f"FSQ, {arch.codebook_size:,} codes ({' x '.join(map(str, arch.fsq_levels))} levels)"
    else:
        latents = f"KL, {arch.kl_channels} channels"
    frames = f"1 + {arch.temporal_factor} k" if arch.causal else f"{arch.temporal_factor} k"
    return [
        ("latents", latents),
        ("compression", f"{compression(arch)} (time x height x width)"),
        ("causal", f"yes, version {arch.version}" if arch.causal else "no"),
        ("input", f"video in [-1, 1]; {frames} frames; height and width multiples of {arch.spatial_factor}"),
        ("channels", f"{arch.ch}, times {', '.join(map(str, arch.ch_mult))} by level"),
        ("residual blocks a level", str(arch.num_res_blocks)),
        ("parameters", f"{parameters(state_dict):,}"),
    ]


def compression(architecture: Architecture) -> str:
    return f"{architecture.temporal_factor} x {architecture.spatial_factor} x {architecture.spatial_factor}"


def parameters(state_dict: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state_dict.values())
