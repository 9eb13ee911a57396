"""The tokenizer's arithmetic, counted: a guard against slower code that needs no clock."""

from dataclasses import replace

import pytest
import torch
from flops import flop_counter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vidtok_plugin import presets, reference_path
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.encoder_decoder import Decoder, Encoder, Network

DISTINCT = {  # presets of distinct layers; the others differ from one of them in width only, or in version and factor
    "vidtok_fsq_causal_488_32768",
    "vidtok_fsq_causal_888_32768_v1_1",
    "vidtok_kl_causal_288_8chn_v1_1",
    "vidtok_kl_causal_444_4chn",
    "vidtok_kl_noncausal_41616_4chn",
    "vidtok_tiny",
}


def flops(network: Network, x: Tensor) -> int:
    with torch.no_grad(), flop_counter() as counter:
        network(x)
    return counter.get_total_flops()


def counts(arch: Architecture, latents: int, side: int) -> dict[str, tuple[int, int]]:
    """Operations of encoding and decoding on a CPU: on the fast path, and by the definition."""
    f, s = arch.temporal_factor, arch.spatial_factor
    found = {}
    with FakeTensorMode():
        video = torch.zeros(1, latents * f, s * side, s * side, 3)
        z = torch.zeros(1, latents, side, side, arch.latent_channels)
        for name, network, x in (("encode", Encoder(arch), video), ("decode", Decoder(arch), z)):
            fast = flops(network, x)
            with reference_path():
                found[name] = (fast, flops(network, x))
    return found


@pytest.mark.parametrize(
    "name", [name if name in DISTINCT else pytest.param(name, marks=pytest.mark.slow) for name in presets()]
)
def test_encoding_takes_the_definitions_arithmetic_and_decoding_a_quarter_less(name: str) -> None:
    found = counts(replace(presets()[name].architecture, ch=32), latents=5, side=2)
    assert found["encode"][0] < 1.002 * found["encode"][1]
    assert found["decode"][0] < 0.76 * found["decode"][1]


def test_a_published_model_takes_the_published_arithmetic() -> None:
    """Decoding 17x64x64 at full width."""
    fast, plain = counts(presets()["vidtok_fsq_causal_488_32768"].architecture, latents=5, side=8)["decode"]
    assert plain / 1e9 == pytest.approx(928.5, abs=0.1) and fast < 655e9
