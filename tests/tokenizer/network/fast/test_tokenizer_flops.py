"""The tokenizer's arithmetic in counts that no machine changes: a guard against slower code that needs no clock."""

import pytest
import torch
from flops import flop_counter
from torch._subclasses.fake_tensor import FakeTensorMode

from vidtok_plugin import presets
from vidtok_plugin.tokenizer.network.encoder_decoder import Decoder, Encoder

# GFLOP of encoding and decoding 17x64x64 (16 frames without causality) at the published width, on a CPU. As published,
# decoding with vidtok_fsq_causal_488_32768 takes 928.5.
GFLOP = {
    "vidtok_kl_causal_488_4chn": (363.4, 652.7),
    "vidtok_kl_causal_488_8chn": (363.5, 652.8),
    "vidtok_kl_causal_488_16chn": (363.7, 652.8),
    "vidtok_kl_causal_288_8chn": (347.4, 711.6),
    "vidtok_kl_causal_444_4chn": (1038.3, 744.6),
    "vidtok_kl_causal_41616_4chn": (418.7, 642.0),
    "vidtok_kl_noncausal_488_4chn": (290.7, 551.1),
    "vidtok_kl_noncausal_488_16chn": (291.0, 551.2),
    "vidtok_kl_noncausal_41616_4chn": (334.9, 542.5),
    "vidtok_kl_noncausal_41616_16chn": (335.0, 542.5),
    "vidtok_fsq_causal_488_262144": (363.4, 652.8),
    "vidtok_fsq_causal_488_32768": (363.4, 652.7),
    "vidtok_fsq_causal_488_4096": (363.3, 652.7),
    "vidtok_fsq_causal_41616_262144": (418.7, 642.0),
    "vidtok_fsq_noncausal_488_262144": (290.7, 551.1),
    "vidtok_fsq_noncausal_41616_262144": (334.9, 542.5),
    "vidtok_kl_causal_488_4chn_v1_1": (363.4, 652.7),
    "vidtok_kl_causal_488_16chn_v1_1": (363.7, 652.8),
    "vidtok_kl_causal_41616_16chn_v1_1": (418.8, 642.0),
    "vidtok_kl_causal_288_8chn_v1_1": (347.4, 711.6),
    "vidtok_fsq_causal_488_32768_v1_1": (363.4, 652.7),
    "vidtok_fsq_causal_41616_262144_v1_1": (418.7, 642.0),
    "vidtok_fsq_causal_888_32768_v1_1": (310.8, 774.6),
    "vidtok_tiny": (2.5, 8.1),
}
QUICK = {
    "vidtok_fsq_causal_488_32768",
    "vidtok_fsq_causal_488_32768_v1_1",
    "vidtok_fsq_causal_888_32768_v1_1",
    "vidtok_kl_causal_288_8chn_v1_1",
    "vidtok_kl_causal_444_4chn",
    "vidtok_kl_noncausal_41616_4chn",
    "vidtok_tiny",
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GFLOP]
)
def test_encoding_and_decoding_take_the_arithmetic_that_they_took(name: str) -> None:
    arch = presets()[name].architecture
    frames = 16 + (arch.temporal_factor if arch.causal else 0)  # with what is put in front
    with FakeTensorMode(), torch.no_grad():
        encoder, decoder = Encoder(arch), Decoder(arch)
        with flop_counter() as encoding:
            z = encoder(torch.zeros(1, frames, 64, 64, 3))
        with flop_counter() as decoding:
            decoder(torch.zeros(*z.shape[:-1], arch.latent_channels))
    counts = [round(counter.get_total_flops() / 1e9, 1) for counter in (encoding, decoding)]
    assert counts == list(GFLOP[name])


def test_every_preset_is_counted() -> None:
    assert GFLOP.keys() == presets().keys()
