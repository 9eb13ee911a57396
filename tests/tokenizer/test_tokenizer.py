"""VidTok's whole-clip interface: lengths, values, errors and gradients, for every kind of model in the family."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import TOY, difference, random_video, toy_tokenizer

from vidtok_plugin import VidTok, presets

EXACT = 1e-11  # float64 rounding
TOYS = {
    "fsq causal v1.0": toy_tokenizer("vidtok_fsq_causal_488_32768"),
    "kl causal v1.1": toy_tokenizer("vidtok_kl_causal_488_4chn_v1_1"),
    "fsq non-causal": toy_tokenizer("vidtok_fsq_noncausal_488_262144"),
    "kl f=2": toy_tokenizer("vidtok_kl_causal_288_8chn"),
    "fsq f=8 v1.1": toy_tokenizer("vidtok_fsq_causal_888_32768_v1_1"),
    "kl s=4": toy_tokenizer("vidtok_kl_causal_444_4chn"),
    "kl s=16 non-causal": toy_tokenizer("vidtok_kl_noncausal_41616_4chn", ch_mult=(1,) * 5),
}


@pytest.fixture(params=TOYS)
def model(request: pytest.FixtureRequest) -> VidTok:
    return TOYS[request.param]


@pytest.fixture
def kl() -> VidTok:
    return TOYS["kl causal v1.1"]


@pytest.fixture
def fsq() -> VidTok:
    return TOYS["fsq causal v1.0"]


def whole_lengths(model: VidTok) -> list[int]:
    return [model.num_frames(steps) for steps in (1, 2, 3)]


# Sizes


@pytest.mark.parametrize("name", presets())
def test_a_name_says_its_sizes(name: str) -> None:
    preset = presets()[name]
    arch = preset.architecture
    assert preset.name == name and preset.compression == (arch.temporal_factor,) + (arch.spatial_factor,) * 2
    if name == "vidtok_tiny":
        return
    _, regularizer, causality, compression, size = name.removesuffix("_v1_1").split("_")
    factors = {"41616": (4, 16), "488": (4, 8), "288": (2, 8), "888": (8, 8), "444": (4, 4)}[compression]
    assert (arch.temporal_factor, arch.spatial_factor) == factors
    assert arch.regularizer == regularizer and arch.causal == (causality == "causal")
    assert arch.version == ("1.1" if name.endswith("_v1_1") else "1.0")
    if regularizer == "fsq":
        assert arch.codebook_size == int(size) and 8**arch.latent_channels == int(size)
    else:
        assert arch.codebook_size is None and f"{arch.latent_channels}chn" == size


def test_seventeen_frames_have_five_latents(fsq: VidTok) -> None:
    assert fsq.num_latents(17) == 5 and fsq.num_frames(5) == 17


@given(toy=st.sampled_from(list(TOYS)), steps=st.integers(1, 10_000), frames=st.integers(1, 100_000))
def test_numbers_of_latents_and_frames_are_inverse(toy: str, steps: int, frames: int) -> None:
    model = TOYS[toy]
    f = model.temporal_factor
    assert model.num_latents(model.num_frames(steps)) == steps
    assert model.num_frames(steps) == (1 + (steps - 1) * f if model.causal else steps * f)
    assert 0 <= model.num_frames(model.num_latents(frames)) - frames < f


@torch.no_grad()
def test_latents_and_frames_have_the_documented_sizes(model: VidTok) -> None:
    s = model.spatial_factor
    for frames in whole_lengths(model):
        encoded = model.encode(random_video(frames, b=2, h=s, w=2 * s))
        grid = (model.num_latents(frames), 1, 2)
        assert encoded.latents.shape == (2, model.latent_channels, *grid)
        assert model.decode(encoded.latents).shape == (2, 3, frames, s, 2 * s)
        if model.codebook_size is None:
            assert encoded.indices is None
        else:
            assert encoded.indices.shape == (2, *grid) and encoded.indices.dtype == torch.int64
            assert encoded.indices.min() >= 0 and encoded.indices.max() < model.codebook_size


@torch.no_grad()
def test_a_partial_group_is_completed_with_the_last_frame_and_cut_back(model: VidTok) -> None:
    s = model.spatial_factor
    whole = model.num_frames(3)
    for frames in range(model.num_frames(2) + 1, whole):
        video = random_video(frames, h=s, w=s)
        completed = torch.cat([video, video[:, :, -1:].expand(-1, -1, whole - frames, -1, -1)], dim=2)
        assert difference(model.encode(video).latents, model.encode(completed).latents) < EXACT
        out = model(video)
        assert out.reconstruction.shape == video.shape
        assert difference(out.reconstruction, model(completed).reconstruction[:, :, :frames]) < EXACT


@torch.no_grad()
def test_a_call_encodes_and_decodes(model: VidTok) -> None:
    s = model.spatial_factor
    video = random_video(model.num_frames(2), b=2, h=2 * s, w=s)
    out, encoded = model(video), model.encode(video)
    assert torch.equal(out.latents, encoded.latents)
    assert out.indices is None if encoded.indices is None else torch.equal(out.indices, encoded.indices)
    assert torch.equal(out.reconstruction, model.decode(encoded.latents))
    assert out.regularizer_terms is None  # in eval mode


# Values


@torch.no_grad()
def test_uint8_video_is_scaled_float_video(model: VidTok) -> None:
    s = model.spatial_factor
    pixels = torch.randint(0, 256, (1, 3, model.num_frames(2), s, s), dtype=torch.uint8)
    pixels[0, 0, 0, 0, :2] = torch.tensor([0, 255])
    single = VidTok(model.architecture).eval()
    scaled = pixels.float() / 127.5 - 1
    assert scaled.min() == -1 and scaled.max() == 1
    assert torch.equal(single.encode(pixels).latents, single.encode(scaled).latents)
    assert torch.equal(single(pixels).reconstruction, single(scaled).reconstruction)


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix(model: VidTok) -> None:
    s = model.spatial_factor
    video = random_video(model.num_frames(2), b=3, h=s, w=s)
    together = model(video)
    for i in range(3):
        alone = model(video[i : i + 1])
        assert difference(together.latents[i : i + 1], alone.latents) < EXACT
        assert difference(together.reconstruction[i : i + 1], alone.reconstruction) < EXACT


@torch.no_grad()
def test_encoding_is_deterministic_in_training_mode_too(model: VidTok) -> None:
    video = random_video(model.num_frames(1), h=model.spatial_factor, w=model.spatial_factor)
    before = model.encode(video).latents
    model.train()
    assert torch.equal(model.encode(video).latents, before)
    model.eval()


@torch.no_grad()
def test_float64_and_float32_models_take_either_video(model: VidTok) -> None:
    s = model.spatial_factor
    video = random_video(model.num_frames(1), h=s, w=s)
    single = VidTok(model.architecture).eval()
    for tokenizer, dtype in ((model, torch.float64), (single, torch.float32)):
        assert tokenizer.dtype == dtype
        for given_dtype in (torch.float32, torch.float64):
            out = tokenizer(video.to(given_dtype))
            assert out.reconstruction.dtype == dtype and out.latents.dtype == dtype


@torch.no_grad()
def test_indices_decode_like_their_latents(model: VidTok) -> None:
    s = model.spatial_factor
    encoded = model.encode(random_video(model.num_frames(2), h=s, w=s))
    if model.codebook_size is None:
        with pytest.raises(ValueError, match="a KL model has no indices; decode its latents"):
            model.decode_indices(torch.zeros(1, 2, 1, 1, dtype=torch.int64))
        return
    assert torch.equal(model.indices_to_latents(encoded.indices).double(), encoded.latents)
    assert torch.equal(model.decode_indices(encoded.indices), model.decode(encoded.latents))


@torch.no_grad()
def test_a_generator_determines_the_sample_of_a_posterior(kl: VidTok) -> None:
    def sample(seed: int) -> torch.Tensor:
        return kl.encode(video, sample=True, generator=torch.Generator().manual_seed(seed)).latents

    video = random_video(1).repeat(128, 1, 1, 1, 1)
    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    seen: list[torch.Tensor] = []
    hook = kl.regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean = kl.encode(video).latents
    hook.remove()
    std = (0.5 * seen[0].chunk(2, dim=1)[1]).exp()
    scores = (sample(1) - mean) / std  # standard normal
    assert scores.mean().abs() < 0.1 and scores.std() == pytest.approx(1, abs=0.1)


def test_kl_models_sample_in_training_and_fsq_models_do_not(kl: VidTok, fsq: VidTok) -> None:
    video = random_video(5)
    for model, samples in ((kl, True), (fsq, False)):
        model.train()
        latents = [model(video).latents for _ in range(2)]
        model.eval()
        assert torch.equal(*latents) != samples


# Training


def test_regularizer_terms_are_named_scalars(kl: VidTok, fsq: VidTok) -> None:
    for model, names in ((kl, {"kl"}), (fsq, {"entropy", "commitment"})):
        model.train()
        terms = model(random_video(5)).regularizer_terms
        model.eval()
        assert set(terms) == names
        assert all(term.ndim == 0 and term.isfinite() and term.requires_grad for term in terms.values())


def test_the_kl_term_is_that_of_the_posterior(kl: VidTok) -> None:
    video, seen = random_video(5, b=2), []
    hook = kl.regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    kl.train()
    term = kl(video).regularizer_terms["kl"]
    kl.eval()
    hook.remove()
    mean, log_variance = seen[0].chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(term, divergence.sum() / 2)


def test_gradients_reach_every_parameter(model: VidTok) -> None:
    s = model.spatial_factor  # two positions: attention over a single one has no gradient
    model.train()
    out = model(random_video(model.num_frames(3), h=s, w=2 * s))
    loss = (out.reconstruction**2).mean() + sum(out.regularizer_terms.values())
    loss.backward()
    model.eval()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    finite = all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    assert untouched == [] and finite


def test_temporal_blocks_of_a_new_model_are_identities() -> None:
    model = VidTok.from_preset("vidtok_kl_causal_488_4chn", **TOY)
    convs = {name: p for name, p in model.named_parameters() if ".norm" not in name}
    last = [name for name in convs if "_temporal." in name and ".conv2." in name]
    assert last and [name for name, p in convs.items() if not p.any()] == last


def test_dropout_acts_in_training_only() -> None:
    model = VidTok.from_preset("vidtok_fsq_causal_488_32768", **TOY, dropout=0.5)
    video = random_video(5).float()
    with torch.no_grad():
        assert not torch.equal(model(video).reconstruction, model(video).reconstruction)
        model.eval()
        assert torch.equal(model(video).reconstruction, model(video).reconstruction)


# Errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 5, 130, 16), "height must be a multiple of 8 .*spatial factor.*, got 130; .* 128 and 136"),
        ((1, 3, 5, 16, 12), "width must be a multiple of 8 .*, got 12; the nearest sizes are 8 and 16"),
        ((1, 3, 5, 4, 8), "height must be a multiple of 8 .*, got 4; the nearest size is 8"),
        ((1, 3, 5, 8, 0), "width must be a multiple of 8 .*, got 0; the nearest size is 8"),
        ((3, 5, 8, 8), r"video must have the shape \(b, 3, t, h, w\), got \(3, 5, 8, 8\)"),
        ((1, 5, 3, 8, 8), r"video must have the shape \(b, 3, t, h, w\), got \(1, 5, 3, 8, 8\)"),
        ((1, 3, 0, 8, 8), r"at least one frame, got \(1, 3, 0, 8, 8\)"),
    ],
)
def test_video_of_a_wrong_shape_is_refused(fsq: VidTok, shape: tuple[int, ...], message: str) -> None:
    for call in (fsq, fsq.encode):
        with pytest.raises(ValueError, match=f"^VidTok: .*{message}"):
            call(torch.zeros(shape))


def test_video_with_values_beyond_the_range_is_refused(fsq: VidTok) -> None:
    with pytest.raises(ValueError, match=r"float video must be in \[-1, 1\], got magnitudes up to 255; pass uint8"):
        fsq.encode(torch.full((1, 3, 5, 8, 8), 255.0))
    for value in (float("nan"), float("inf"), -2.0):
        with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
            fsq.encode(torch.full((1, 3, 1, 8, 8), value))
    with pytest.raises(ValueError, match="uint8 in 0-255 or float .*, got torch.int64"):
        fsq.encode(torch.zeros(1, 3, 5, 8, 8, dtype=torch.int64))


@torch.no_grad()
def test_a_decoders_overshoot_is_valid_video(fsq: VidTok) -> None:
    fsq.encode(torch.full((1, 3, 1, 8, 8), 1.2))


def test_latents_of_a_wrong_shape_are_refused(kl: VidTok) -> None:
    for shape in ((1, 5, 2, 1, 1), (4, 2, 1, 1), (1, 4, 0, 1, 1)):
        with pytest.raises(ValueError, match=r"latents must have "):
            kl.decode(torch.zeros(shape))


def test_indices_outside_the_codebook_are_refused(fsq: VidTok) -> None:
    for wrong in (-1, 32768):
        indices = torch.tensor([0, wrong]).view(1, 2, 1, 1)
        with pytest.raises(ValueError, match=rf"indices must be 0 to 32767, got .*{wrong}"):
            fsq.decode_indices(indices)


def test_sampling_is_for_kl_models(fsq: VidTok) -> None:
    for settings in ({"sample": True}, {"generator": torch.Generator()}):
        with pytest.raises(ValueError, match="sample and generator are for KL models"):
            fsq.encode(random_video(1), **settings)


def test_a_generator_without_sampling_is_refused(kl: VidTok) -> None:
    """No option is silently ignored."""
    with pytest.raises(ValueError, match="generator draws a sample; add sample=True"):
        kl.encode(random_video(1), generator=torch.Generator())


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no preset 'vidtok_fsq_causal_488_32767'; .* 'vidtok_fsq_causal_488_32768'"):
        VidTok.from_preset("vidtok_fsq_causal_488_32767")


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no architecture setting 'ch_mul'; the nearest is 'ch_mult'"):
        VidTok.from_preset("vidtok_tiny", ch_mul=(1, 1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kl_channels": 4}, "'fsq' takes fsq_levels and 'kl' takes kl_channels"),
        ({"regularizer": "kl"}, "'fsq' takes fsq_levels and 'kl' takes kl_channels"),
        ({"fsq_levels": (8, 1)}, r"every FSQ level must be 2 or more, got \(8, 1\)"),
        ({"fsq_levels": ()}, "every FSQ level must be 2 or more"),
        ({"causal": False, "version": "1.1"}, "version 1.1 is a kind of causal padding"),
        ({"ch": 0}, "ch must be 1 to 65536, got 0"),
        ({"ch_mult": (1, 0, 1, 1)}, "ch_mult must be 1 to 65536, got 1, 0, 1, 1"),
        ({"encoder_temporal_levels": (1,)}, "encoder and decoder must have the same number of temporal levels"),
        ({"encoder_spatial_levels": (1, 2)}, "encoder and decoder must have the same number of spatial levels"),
        ({"encoder_temporal_levels": (1, 4)}, "temporal levels must be 0 to 3"),
        ({"encoder_temporal_levels": (2, 2)}, "levels must differ"),
        ({"version": "2.0"}, "version must be '1.0' or '1.1', got '2.0'"),
        ({"regularizer": "vq"}, "regularizer must be 'fsq' or 'kl', got 'vq'"),
        ({"regularizer": "vq", "fsq_levels": None}, "regularizer must be 'fsq' or 'kl', got 'vq'"),
        ({"regularizer": "kl"}, "regularizer 'fsq' takes fsq_levels and 'kl' takes kl_channels, got 'kl'"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"dropout": float("nan")}, "dropout must be a finite number, got nan"),
        ({"ch": 4.0}, "ch must be a whole number, got 4.0"),
        ({"ch": 10**9}, "ch must be 1 to 65536"),
        ({"num_res_blocks": 10**6}, "num_res_blocks must be 1 to 64, got 1000000"),
        ({"fsq_levels": (8,) * 11}, "fsq_levels must multiply to at most 2.31 codes, .* got 8589934592"),
    ],
)
def test_invalid_architectures_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Architecture: .*{message}"):
        VidTok.from_preset("vidtok_fsq_causal_488_32768", **overrides)
