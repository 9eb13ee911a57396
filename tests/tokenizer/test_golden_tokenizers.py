"""Outputs, keys and shapes equal those of the published implementation."""

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
from golden_weights import fill
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor

from vidtok_plugin import VidTok, presets, reference_path
from vidtok_plugin.tokenizer.model import count_parameters
from vidtok_plugin.tokenizer.objective import ObjectiveConfig

GOLDEN = GOLDEN_FILES
SHAPES = json.loads((GOLDEN / "published_state_dict_shapes.json").read_text())
NAMES = tuple(SHAPES)
V1_1 = tuple(name for name in NAMES if name.endswith("v1_1"))
CAUSAL = tuple(name for name in NAMES if "_causal" in name)
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
# The published reconstructions are rounded to float32 too: up to 1.3e-5 from ours in float64.
TOLERANCE_OF_TWO_ROUNDINGS = {"rtol": 0.0, "atol": 3e-5}


class Golden:
    """A golden model, its inputs and the published outputs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.published = load_file(GOLDEN / f"{name}.safetensors")
        self.model = fill(VidTok.from_preset(name, ch=16)).eval()
        self.size = 32 if "41616" in name else 16
        self.video = self.uniform(0, 17 if self.model.causal else 16)

    def uniform(self, seed: int, num_frames: int) -> Tensor:
        video = np.random.RandomState(seed).uniform(-1, 1, (1, 3, num_frames, self.size, self.size))
        return torch.from_numpy(video.astype(np.float32))


@functools.cache
def golden_of(name: str) -> Golden:
    return Golden(name)


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_of(request.param)


def near_a_rounding_boundary(encoder_output: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Mask (b, T, H, W) of the tokens that have a channel whose value before rounding is within 1e-3 of a half."""
    level = torch.tensor(levels, dtype=torch.float64).view(1, -1, 1, 1, 1)
    half_width = (level - 1) * 1.001 / 2
    offset = (level % 2 == 0) * 0.5
    value = torch.tanh(encoder_output.double() + torch.atanh(offset / half_width)) * half_width - offset
    return (((value % 1) - 0.5).abs() < 1e-3).any(1)


@torch.no_grad()
def test_the_encoder_gives_the_published_output(golden: Golden) -> None:
    seen: list[Tensor] = []
    hook = golden.model.regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    golden.model.encode(golden.video)
    hook.remove()
    torch.testing.assert_close(seen[0], golden.published["encoder_output"], **TOLERANCE)


@torch.no_grad()
def test_latents_and_indices_equal_the_published_ones(golden: Golden) -> None:
    encoded = golden.model.encode(golden.video)
    levels = golden.model.architecture.fsq_levels
    if levels is None:
        assert encoded.indices is None
        torch.testing.assert_close(encoded.latents, golden.published["latents"], **TOLERANCE)
        return
    certain = ~near_a_rounding_boundary(golden.published["encoder_output"], levels)
    assert certain.float().mean() > 0.9  # else the comparison would mean little
    assert encoded.indices is not None and encoded.indices.dtype == torch.int64
    assert torch.equal(encoded.indices[certain], golden.published["indices"].long()[certain])
    ours, published = (x.movedim(1, -1)[certain] for x in (encoded.latents, golden.published["latents"]))
    torch.testing.assert_close(ours, published, **TOLERANCE)


@torch.no_grad()
def test_published_latents_and_indices_decode_to_the_published_video(golden: Golden) -> None:
    videos = [golden.model.decode(golden.published["latents"])]
    if "indices" in golden.published:
        videos.append(golden.model.decode_indices(golden.published["indices"].long()))
    for video in videos:
        torch.testing.assert_close(video, golden.published["reconstruction"], **TOLERANCE_OF_TWO_ROUNDINGS)
    exact = copy.deepcopy(golden.model).double().decode(golden.published["latents"])
    torch.testing.assert_close(exact.float(), golden.published["reconstruction"], **TOLERANCE)


@torch.no_grad()
def test_weighted_regularizer_terms_equal_the_published_losses(golden: Golden) -> None:
    golden.model.train()
    terms = golden.model(golden.video).regularizer_terms
    golden.model.eval()
    cfg = ObjectiveConfig()
    if "kl_loss" in golden.published:
        # The published value is unweighted; its weight in the objective is 1e-6.
        assert list(terms) == ["kl"] and cfg.regularizer_weight("kl", 0) == 1e-6
        torch.testing.assert_close(terms["kl"], golden.published["kl_loss"][0], rtol=5e-5, atol=0.0)
        return
    for step, name in ((0, "aux_loss"), (1000, "aux_loss_step_1000"), (2000, "aux_loss_step_2000")):
        loss = sum(cfg.regularizer_weight(term, step) * value for term, value in terms.items())
        torch.testing.assert_close(loss, golden.published[name][0], rtol=5e-5, atol=0.0)


@torch.no_grad()
def test_the_reference_path_gives_the_published_output(golden: Golden) -> None:
    """Only the definition, in float64, because float32 rounding differs on it."""
    exact, seen = copy.deepcopy(golden.model).double(), list[Tensor]()
    exact.regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with reference_path():
        exact.encode(golden.video)
        video = exact.decode(golden.published["latents"])
    torch.testing.assert_close(seen[0].float(), golden.published["encoder_output"], **TOLERANCE)
    torch.testing.assert_close(video.float(), golden.published["reconstruction"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", V1_1)
def test_a_long_v1_1_clip_gives_the_published_output(name: str) -> None:
    golden = golden_of(name)
    latents = golden.model.encode(golden.uniform(1, 25)).latents
    torch.testing.assert_close(latents, golden.published["long_latents"], **TOLERANCE)
    video = golden.model.decode(golden.published["long_latents"])
    torch.testing.assert_close(video, golden.published["long_reconstruction"], **TOLERANCE_OF_TWO_ROUNDINGS)


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_streams_give_the_published_output(name: str) -> None:
    """The published implementation has no streams for v1.0, and those of v1.1 differ from its own output by 1e-3."""
    golden, long = golden_of(name), name in V1_1
    video = golden.uniform(1, 25) if long else golden.video
    latents, reconstruction = (
        golden.published[f"long_{key}" if long else key] for key in ("latents", "reconstruction")
    )
    encoder, decoder = golden.model.encoder_stream(), golden.model.decoder_stream()
    encoded = [encoder.push(chunk).latents for chunk in video.split(3, dim=2)] + [encoder.flush().latents]
    torch.testing.assert_close(torch.cat(encoded, dim=2), latents, **TOLERANCE)
    frames = [decoder.push(chunk) for chunk in latents.split(2, dim=2)] + [decoder.flush()]
    torch.testing.assert_close(torch.cat(frames, dim=2), reconstruction, **TOLERANCE_OF_TWO_ROUNDINGS)


def test_the_family_is_the_published_one() -> None:
    published = {name for name, preset in presets().items() if preset.checkpoint is not None}
    assert published == set(SHAPES) and len(published) == 23


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_keys_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = VidTok(presets()[name].architecture)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == SHAPES[name]
    assert count_parameters(presets()[name].architecture) == sum(math.prod(shape) for shape in SHAPES[name].values())


@torch.no_grad()
def test_a_preset_knows_the_shape_of_its_latents(golden: Golden) -> None:
    preset, video = presets()[golden.name], golden.video
    assert golden.model.encode(video).latents.shape[1:] == preset.latent_shape(*video.shape[2:])
