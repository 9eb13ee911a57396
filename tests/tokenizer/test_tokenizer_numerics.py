"""Results don't depend on sizes, precision, memory format or compiler, within stated bounds."""

import copy
from typing import Any

import pytest
import torch
from golden_weights import fill
from torch import Tensor
from toy_tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin import VidTok

NAMES = ("vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_fsq_noncausal_488_262144")
FLOAT32 = 2e-5  # relative to the largest value
# Bfloat16 has 8 bits: over about 30 layers, errors add up to some percent of the largest value.
BFLOAT16 = 0.08  # relative to the largest value; kernels round differently by processor: up to 0.064 was measured
BFLOAT16_INDICES = 0.25  # fraction of codes that may change: the reason why the adapter encodes in float32


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> VidTok:
    filled: Any = fill(VidTok.from_preset(name, ch=16)).eval()
    return filled


def clip(model: VidTok, *, b: int = 2, h: int = 16, w: int = 40) -> Tensor:
    return random_video(9 if model.causal else 8, b=b, h=h, w=w).float()


def encoder_output(model: VidTok, video: Tensor) -> Tensor:
    """The regularizer's input, where no rounding to codes hides or amplifies a difference."""
    seen: list[Tensor] = []
    hook = model.regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(video)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_float32_and_float64_agree(model: VidTok) -> None:
    video, exact = clip(model), copy.deepcopy(model).double()
    assert difference(encoder_output(model, video).double(), encoder_output(exact, video.double())) < FLOAT32
    latents = model.encode(video).latents
    assert difference(model.decode(latents).double(), exact.decode(latents.double())) < FLOAT32


@torch.no_grad()
def test_height_width_and_batch_are_treated_alike(model: VidTok) -> None:
    """A transposed picture with transposed weights gives transposed latents."""
    video, transposed = clip(model), copy.deepcopy(model)
    for parameter in transposed.parameters():
        if parameter.ndim >= 4:
            parameter.copy_(parameter.clone().transpose(-1, -2))
    output = encoder_output(model, video)
    assert difference(encoder_output(transposed, video.transpose(-1, -2)).transpose(-1, -2), output) < FLOAT32
    for i in range(len(video)):
        assert difference(encoder_output(model, video[i : i + 1]), output[i : i + 1]) < FLOAT32


@torch.no_grad()
def test_any_memory_format_gives_the_same_result(model: VidTok) -> None:
    video = clip(model)
    output, latents = encoder_output(model, video), model.encode(video).latents
    strided = video.permute(0, 2, 4, 3, 1).contiguous().permute(0, 4, 1, 3, 2)
    assert strided.stride() != video.stride()
    for other in (video.contiguous(memory_format=torch.channels_last_3d), strided):
        assert difference(encoder_output(model, other), output) < FLOAT32
    other_latents = latents.contiguous(memory_format=torch.channels_last_3d)
    assert difference(model.decode(other_latents), model.decode(latents)) < FLOAT32


@torch.no_grad()
def test_bfloat16_autocast_stays_within_its_bounds(model: VidTok) -> None:
    video = clip(model)
    output, encoded = encoder_output(model, video), model.encode(video)
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_encoded = encoder_output(model, video), model.encode(video)
        reconstruction = model.decode(encoded.latents)
    assert difference(rough.float(), output) < BFLOAT16
    assert difference(reconstruction.float(), model.decode(encoded.latents)) < BFLOAT16
    if encoded.indices is not None:
        assert (rough_encoded.indices != encoded.indices).float().mean() < BFLOAT16_INDICES
        assert rough_encoded.latents.dtype == torch.float32


def assert_compiles(model: VidTok, backend: str) -> None:
    """As one graph, without graph breaks."""
    x = torch.randn(1, 2 * model.temporal_factor, 8, 16, 3)
    z = torch.randn(1, 2, 1, 2, model.latent_channels)
    torch._dynamo.reset()
    with torch.no_grad():
        for network, value in ((model.encoder, x), (model.decoder, z)):
            compiled: Any = torch.compile(network, backend=backend, fullgraph=True)
            assert difference(compiled(value), network(value)) < FLOAT32


def test_a_network_compiles_to_one_graph() -> None:
    one_level = {f"{part}_{kind}_levels": (0,) for part in ("encoder", "decoder") for kind in ("spatial", "temporal")}
    model = toy_tokenizer("vidtok_kl_causal_488_4chn_v1_1", ch_mult=(1,), **one_level)
    assert_compiles(model.float(), "eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler itself
def test_a_compiled_network_equals_the_eager_one(name: str) -> None:
    two_levels = {"ch_mult": (1, 1), "encoder_temporal_levels": (0,), "decoder_temporal_levels": (1,)}
    assert_compiles(toy_tokenizer(name, **two_levels).float(), "inductor")
