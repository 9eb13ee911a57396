"""Streams of all published causal models, and of random architectures, equal the whole clip."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from golden_weights import fill
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.architecture import Architecture

CAUSAL = [name for name, preset in presets().items() if preset.architecture.causal]
PUBLISHED = [name for name in CAUSAL if name != "vidtok_tiny"]
EXACT = 1e-11  # float64 rounding
# Float32 rounding of all layers, relative to the largest value.
FLOAT32 = 1e-5
# Convolutions of different lengths may sum in another order before they round to bfloat16's 8 bits.
BFLOAT16 = 3e-2


def encode(model: VidTok, video: Tensor, split: Sequence[int]) -> Tensor:
    stream = model.encoder_stream()
    encoded = [stream.push(chunk) for chunk in video.split(list(split), dim=2)] + [stream.flush()]
    return torch.cat([chunk.latents for chunk in encoded], dim=2)


def decode(model: VidTok, latents: Tensor, split: Sequence[int]) -> Tensor:
    stream = model.decoder_stream()
    frames = [stream.push(chunk) for chunk in latents.split(list(split), dim=2)] + [stream.flush()]
    return torch.cat(frames, dim=2)


def splits_of(length: int) -> dict[str, list[int]]:
    return {
        "one by one": [1] * length,
        "all at once": [length],
        "in groups": [1] + [4] * ((length - 1) // 4) + [(length - 1) % 4] * ((length - 1) % 4 > 0),
        "unevenly": [2, length - 5, 3],
    }


def test_the_family_has_seventeen_causal_models() -> None:
    assert len(PUBLISHED) == 17


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_every_split_equals_the_whole_clip(name: str) -> None:
    model = toy_tokenizer(name)
    size = model.spatial_factor
    video = random_video(11, h=size, w=2 * size)
    whole = model.encode(video).latents
    for way, split in splits_of(11).items():
        assert difference(encode(model, video, split), whole) < EXACT, way
    latents = torch.randn(1, model.latent_channels, 6, 1, 2, dtype=torch.float64)
    whole = model.decode(latents)
    for way, split in splits_of(6).items():
        assert difference(decode(model, latents, split), whole) < EXACT, way


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_float32_streams_equal_the_whole_clip_to_rounding(name: str) -> None:
    model = fill(VidTok.from_preset(name, ch=16)).eval()
    size = 2 * model.spatial_factor
    video = random_video(9, h=size, w=size).float()
    whole = model.encode(video)
    stream = model.encoder_stream()
    encoded = [stream.push(frame) for frame in video.split(1, dim=2)]
    assert difference(torch.cat([chunk.latents for chunk in encoded], dim=2), whole.latents) < FLOAT32
    if whole.indices is not None:  # no value of this clip is within rounding of a boundary
        assert torch.equal(torch.cat([chunk.indices for chunk in encoded], dim=1), whole.indices)
    assert difference(decode(model, whole.latents, [1] * whole.latents.shape[2]), model.decode(whole.latents)) < FLOAT32


@pytest.mark.parametrize("name", ["vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1"])
@torch.no_grad()
def test_streams_under_autocast_equal_the_whole_clip_under_autocast(name: str) -> None:
    model = fill(VidTok.from_preset(name, ch=16)).eval()
    video = random_video(9, h=16, w=16).float()
    with torch.autocast("cpu", torch.bfloat16):
        encoder_output: list[Tensor] = []
        hook = model.regularization.register_forward_pre_hook(lambda _, inputs: encoder_output.append(inputs[0]))
        model.encode(video)
        encode(model, video, [1, 3, 5])
        hook.remove()
        whole, *chunks = encoder_output
        assert difference(torch.cat(chunks, dim=2).float(), whole.float()) < BFLOAT16
        latents = torch.randn(1, model.latent_channels, 3, 2, 2)
        assert difference(decode(model, latents, [1, 2]).float(), model.decode(latents).float()) < BFLOAT16


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any causal VidTok that is small enough to run instantly."""
    depth = draw(st.integers(1, 4))

    def levels(count: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.permutations(range(depth)))[:count]))

    spatial, temporal = draw(st.integers(0, min(depth, 3))), draw(st.integers(0, min(depth, 3)))
    regularizer: dict[str, Any] = draw(
        st.sampled_from([{"regularizer": "kl", "kl_channels": 2}, {"regularizer": "fsq", "fsq_levels": (8, 5)}])
    )
    return Architecture(
        **regularizer,
        version=draw(st.sampled_from(["1.0", "1.1"])),
        ch=draw(st.integers(2, 5)),
        ch_mult=tuple(draw(st.lists(st.integers(1, 2), min_size=depth, max_size=depth))),
        num_res_blocks=draw(st.integers(1, 2)),
        encoder_spatial_levels=levels(spatial),
        decoder_spatial_levels=levels(spatial),
        encoder_temporal_levels=levels(temporal),
        decoder_temporal_levels=levels(temporal),
    )


@settings(max_examples=40)
@given(architecture=architectures(), data=st.data())
@torch.no_grad()
def test_any_architecture_and_any_split_equal_the_whole_clip(architecture: Architecture, data: st.DataObject) -> None:
    model: Any = fill(VidTok(architecture)).eval().double()
    f, size = model.temporal_factor, 2 * model.spatial_factor

    def split_of(longest: int) -> list[int]:
        return data.draw(st.lists(st.integers(1, f + 1), min_size=1, max_size=longest))

    split = split_of(4)
    video = random_video(sum(split), h=size, w=size)
    assert difference(encode(model, video, split), model.encode(video).latents) < EXACT
    split = split_of(3)
    latents = torch.randn(1, model.latent_channels, sum(split), 2, 2, dtype=torch.float64)
    assert difference(decode(model, latents, split), model.decode(latents)) < EXACT
