"""One contract for adapters of both kinds: exact both ways, frozen, and the same whatever surrounds them."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin import TokenGrid, TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.adapter.vocabulary import Vocabulary

PRESETS = {
    "fsq": "vidtok_fsq_causal_488_32768",
    "fsq non-causal": "vidtok_fsq_noncausal_488_262144",
    "kl": "vidtok_kl_causal_488_4chn_v1_1",
    "kl f=2": "vidtok_kl_causal_288_8chn",
}
EXACT = 1e-11  # of float64 values: rounding alone


def tokenizer(name: str, dtype: torch.dtype = torch.float32) -> VidTok:
    return toy_tokenizer(PRESETS[name]).to(dtype)


def make(name: str, **settings: Any) -> TokenizerAdapter:
    if name.startswith("kl"):
        settings = {"patch_size": (1, 1, 2), **settings}
    return TokenizerAdapter(tokenizer(name), **settings)


def video(num_frames: int = 9, *, b: int = 1, seed: int = 0, h: int = 8, w: int = 32) -> Tensor:
    return random_video(num_frames, b=b, h=h, w=w, seed=seed).float()


@pytest.fixture(scope="module", params=PRESETS)
def adapter(request: pytest.FixtureRequest) -> TokenizerAdapter:
    return make(request.param)


@pytest.fixture(scope="module", params=[name for name in PRESETS if "non-causal" not in name])
def causal(request: pytest.FixtureRequest) -> TokenizerAdapter:
    return make(request.param)


@pytest.fixture(scope="module")
def discrete() -> TokenizerAdapter:
    return make("fsq")


@pytest.fixture(scope="module")
def continuous() -> TokenizerAdapter:
    return make("kl")


def values(tokens: VideoTokens) -> Tensor:
    return tokens.ids if tokens.discrete else tokens.patches


# Exactly, both ways


def test_tokens_are_the_tokenizers_own_latents(adapter: TokenizerAdapter) -> None:
    clip = video(adapter.tokenizer.num_frames(2), b=2)
    tokens, encoded = adapter.encode(clip), adapter.tokenizer.encode(clip)
    assert torch.equal(adapter.latents_of(tokens), encoded.latents)
    assert torch.equal(adapter.decode(tokens), adapter.tokenizer.decode(encoded.latents))
    assert not values(tokens).requires_grad


def test_the_kind_follows_from_the_regularizer(adapter: TokenizerAdapter) -> None:
    discrete = adapter.tokenizer.codebook_size is not None
    assert adapter.kind == ("discrete" if discrete else "continuous")
    tokens = adapter.encode(video())
    assert tokens.discrete == discrete
    assert tokens.grid_values.dtype == (torch.int64 if discrete else torch.float32)


def test_ids_and_indices_are_each_others_inverse(discrete: TokenizerAdapter) -> None:
    indices = torch.randint(0, discrete.codebook_size, (2, 3, 4, 5))
    grid = TokenGrid(3, 4, 5)
    ids = discrete.indices_to_ids(indices, grid)
    assert ids.shape == (2, 60) and ids.dtype == torch.int64
    assert torch.equal(discrete.ids_to_indices(ids, grid), indices)
    assert ids[1, (2 * 4 + 3) * 5 + 1] == indices[1, 2, 3, 1]  # raster order: time, row, column


@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 1), (1, 2, 3)])
def test_patches_and_latents_are_each_others_inverse(patch_size: tuple[int, int, int]) -> None:
    adapter = make("kl", patch_size=patch_size)
    latents = torch.randn(2, 4, 3, 4, 6)
    grid = TokenGrid(3, 4 // patch_size[1], 6 // patch_size[2])
    patches = adapter.latents_to_patches(latents)
    assert patches.shape == (2, grid.num_tokens, adapter.patch_dim)
    assert adapter.patch_dim == 4 * math.prod(patch_size)
    assert torch.equal(adapter.patches_to_latents(patches, grid), latents)
    step, row, column = 2, grid.H - 1, 1
    block = latents[1, :, step, row * patch_size[1] :, column * patch_size[2] : (column + 1) * patch_size[2]]
    patch = patches[1, (step * grid.H + row) * grid.W + column]
    assert torch.equal(patch.sort().values, block.flatten().sort().values)


def test_normalised_patches_come_back_within_rounding() -> None:
    adapter = make("kl", patch_size=(1, 2, 1))
    adapter.latent_mean.copy_(torch.tensor([0.0, 3.0, -20.0, 0.1]))
    adapter.latent_std.copy_(torch.tensor([1.0, 0.03, 7.0, 11.0]))
    noise = torch.randn(2, 4, 3, 4, 6)
    latents = adapter.latent_mean.view(1, 4, 1, 1, 1) + adapter.latent_std.view(1, 4, 1, 1, 1) * noise
    patches = adapter.latents_to_patches(latents)
    back = adapter.patches_to_latents(patches, TokenGrid(3, 2, 6))
    for channel in range(4):
        assert difference(back[:, channel], latents[:, channel]) < 1e-6
    assert difference(adapter.latents_to_patches(back), patches) < 1e-5  # of values around 100 standard deviations


def test_generated_tokens_decode_as_encoded_ones_do(adapter: TokenizerAdapter) -> None:
    tokens = adapter.encode(video(adapter.tokenizer.num_frames(2), b=2))
    from_values = adapter.tokens_from_ids if tokens.discrete else adapter.tokens_from_patches
    generated = from_values(values(tokens).clone(), tokens.grid)
    assert generated.grid == tokens.grid and torch.equal(generated.num_frames, tokens.num_frames)
    assert torch.equal(generated.grid_values, tokens.grid_values)
    assert torch.equal(adapter.decode(generated), adapter.decode(tokens))
    shorter = from_values(values(tokens), tokens.grid, adapter.tokenizer.num_frames(2) - 1)
    assert torch.equal(adapter.decode(shorter), adapter.decode(tokens)[:, :, :-1])


def test_an_odd_length_comes_back_at_its_own_length(adapter: TokenizerAdapter) -> None:
    for frames in range(adapter.tokenizer.num_frames(1), adapter.tokenizer.num_frames(2) + 1):
        tokens = adapter.encode(video(frames, b=2))
        assert tokens.num_frames.tolist() == [frames] * 2
        assert tokens.grid == adapter.grid(frames, 8, 32)
        assert adapter.decode(tokens).shape == (2, 3, frames, 8, 32)


def test_uint8_video_has_the_tokens_of_scaled_float_video(adapter: TokenizerAdapter) -> None:
    pixels = torch.randint(0, 256, (1, 3, 5, 8, 32), dtype=torch.uint8)
    assert torch.equal(values(adapter.encode(pixels)), values(adapter.encode(pixels.float() / 127.5 - 1)))


# The same whatever surrounds it


def test_tokens_do_not_depend_on_autocast(adapter: TokenizerAdapter) -> None:
    """In bfloat16 ids would change by the dozen."""
    clip = video(adapter.tokenizer.num_frames(3), b=2)
    plain = adapter.encode(clip)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = adapter.encode(clip)
        assert autocast.grid_values.dtype == plain.grid_values.dtype
        if adapter.tokenizer.causal:
            stream = adapter.stream()
            streamed = torch.cat([values(stream.push(clip)), values(stream.flush())], dim=1)
            assert torch.allclose(streamed, values(plain), rtol=0, atol=1e-4)
    assert torch.equal(values(autocast), values(plain))


def test_tokens_do_not_depend_on_the_batch(adapter: TokenizerAdapter) -> None:
    clips = torch.cat([video(seed=seed) for seed in range(3)])
    together = values(adapter.encode(clips))
    for i in range(3):
        alone = values(adapter.encode(clips[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0 if adapter.kind == "discrete" else 1e-5)


def test_tokens_do_not_depend_on_training_mode_or_gradients(adapter: TokenizerAdapter) -> None:
    plain = values(adapter.encode(video()))
    adapter.train()
    assert torch.equal(values(adapter.encode(video().requires_grad_())), plain)
    adapter.eval()


def test_a_tokenizer_that_is_not_in_float32_is_refused() -> None:
    """Ids change in half precision, also where the whole model around the adapter is brought to it."""
    with pytest.raises(ValueError, match="must be in float32, since ids change in torch.bfloat16; call .*float"):
        TokenizerAdapter(tokenizer("fsq").bfloat16())
    parent = nn.ModuleDict({"adapter": make("fsq"), "head": nn.Linear(1, 1)})
    parent.bfloat16()
    with pytest.raises(ValueError, match="must be in float32"):
        parent["adapter"].encode(video())
    with pytest.raises(ValueError, match="must be in float32"):
        parent["adapter"].stream().push(video())


# Frozen


def test_it_freezes_the_very_tokenizer_that_it_is_given() -> None:
    for name in PRESETS:
        tok = tokenizer(name).train()
        adapter = TokenizerAdapter(tok)
        assert adapter.tokenizer is tok and adapter.frozen
        assert not tok.training and not any(p.requires_grad for p in tok.parameters())


def test_the_tokenizer_stays_in_eval_mode_whatever_the_parent_does(adapter: TokenizerAdapter) -> None:
    parent = nn.ModuleDict({"adapter": adapter, "head": nn.Dropout()})
    parent.train()
    assert parent["head"].training and adapter.training
    assert not any(module.training for module in adapter.tokenizer.modules())
    parent.eval()
    assert not adapter.training


def test_decoding_passes_gradients_to_its_input_alone() -> None:
    for name in ("kl", "kl f=2"):
        adapter = make(name)
        tokens = adapter.encode(video())
        patches = tokens.patches.requires_grad_()
        adapter.decode(adapter.tokens_from_patches(patches, tokens.grid)).square().sum().backward()
        assert patches.grad is not None and patches.grad.isfinite().all()
        assert (patches.grad.abs().sum(-1) > 0).all()  # every token matters
        assert all(p.grad is None for p in adapter.parameters())


class Parent(nn.Module):
    """A world model that holds an adapter, and another tokenizer that it trains."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.training_tokenizer = nn.ModuleDict({"tokenizer": tokenizer(name)})
        self.adapter = make(name)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("name", ["fsq", "kl"])
def test_its_weights_stay_out_of_the_parents_checkpoints(name: str) -> None:
    parent = Parent(name)
    state_dict = parent.state_dict()
    statistics = ["adapter.latent_mean", "adapter.latent_std"] if name == "kl" else []
    assert [key for key in state_dict if key.startswith("adapter.")] == statistics
    assert any(key.startswith("training_tokenizer.tokenizer.encoder.") for key in state_dict)
    before = parent.adapter.hash
    changed = {key: value + 1 for key, value in state_dict.items()}
    parent.load_state_dict(changed, strict=True)
    assert all(torch.equal(value, changed[key]) for key, value in parent.state_dict().items())
    assert (parent.adapter.hash == before) == (name == "fsq")  # a KL model's statistics came from the checkpoint
    parent.adapter.load_state_dict(parent.adapter.state_dict(), strict=True)


def test_a_strict_load_still_misses_what_is_not_the_adapters() -> None:
    """Leaving the frozen weights out must not hide that a tokenizer in training has lost its own."""
    parent = Parent("fsq")
    state_dict = parent.state_dict()
    lost = "training_tokenizer.tokenizer.encoder.conv_in.conv.bias"
    del state_dict[lost]
    with pytest.raises(RuntimeError, match=rf"Missing key.*{re.escape(lost)}"):
        parent.load_state_dict(state_dict, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        parent.load_state_dict({key: value for key, value in parent.state_dict().items() if key != "head.bias"})


def test_an_optimizer_over_the_parent_leaves_it_alone() -> None:
    parent = Parent("kl")
    before = parent.adapter.hash
    optimizer = torch.optim.AdamW(parent.parameters(), lr=1.0, weight_decay=1.0)
    tokens = parent.adapter.encode(video())
    (parent.head.weight.sum() * parent.adapter.decode(tokens).sum()).backward()
    optimizer.step()
    assert parent.adapter.hash == before


def test_a_copy_is_an_adapter_of_its_own(adapter: TokenizerAdapter) -> None:
    twin = copy.deepcopy(adapter)
    assert twin.hash == adapter.hash and twin.tokenizer is not adapter.tokenizer
    assert torch.equal(values(twin.encode(video())), values(adapter.encode(video())))


# The hash


def test_the_hash_tells_what_changes_tokens() -> None:
    def changed(name: str, change: Any) -> str:
        adapter = make(name)
        with torch.no_grad():
            change(adapter)
        return adapter.hash

    hashes = [
        make("fsq").hash,
        make("fsq", special_tokens=("bos",)).hash,
        make("fsq", special_tokens=("eos", "bos", "pad")).hash,
        make("kl").hash,
        make("kl", patch_size=(1, 1, 1)).hash,
        changed("fsq", lambda a: next(a.tokenizer.encoder.parameters())[0].add_(1e-6)),
        changed("fsq", lambda a: list(a.tokenizer.decoder.parameters())[-1][0].add_(1e-6)),
        changed("kl", lambda a: a.latent_mean[0].add_(1e-6)),
        changed("kl", lambda a: a.latent_std[1].mul_(1.001)),
        # v1.0 and v1.1 have the same weights and differ in how they pad.
        TokenizerAdapter(toy_tokenizer("vidtok_fsq_causal_488_32768_v1_1").float()).hash,
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_does_not_tell_what_leaves_tokens_as_they_are(adapter: TokenizerAdapter, tmp_path: Path) -> None:
    before = adapter.hash
    adapter.encode(video(b=2))
    adapter.train()
    assert adapter.hash == before == copy.deepcopy(adapter).to("cpu").hash
    adapter.eval()
    adapter.save_pretrained(tmp_path)
    assert TokenizerAdapter.from_pretrained(tmp_path).hash == before


@pytest.mark.gpu
def test_the_hash_and_the_ids_do_not_depend_on_the_device(discrete: TokenizerAdapter) -> None:
    moved = copy.deepcopy(discrete).to("cuda")
    assert moved.hash == discrete.hash
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        agreeing = moved.encode(video(17, b=4).to("cuda")).ids.cpu() == discrete.encode(video(17, b=4)).ids
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    assert agreeing.float().mean() > 0.95  # but for values at rounding boundaries


# Saving


def test_a_saved_adapter_comes_back(tmp_path: Path) -> None:
    for name in PRESETS:
        saved = make(name, special_tokens=("start", "mask"))
        if saved.kind == "continuous":
            saved.fit_latent_stats([video()])
        saved.save_pretrained(tmp_path / name)
        loaded = TokenizerAdapter.from_pretrained(tmp_path / name)
        assert loaded.config == saved.config and loaded.kind == saved.kind
        assert torch.equal(values(loaded.encode(video())), values(saved.encode(video())))
        assert loaded.frozen and not loaded.tokenizer.training
        assert not any(p.requires_grad for p in loaded.parameters())


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter\.yaml; it is no folder written by save_pretrained"):
        TokenizerAdapter.from_pretrained(tmp_path)


# Sizes


def test_the_grid_counts_patches() -> None:
    assert make("fsq").grid(17, 64, 48) == TokenGrid(5, 8, 6)
    assert make("fsq").grid(16, 64, 48) == TokenGrid(5, 8, 6)  # completed
    assert make("fsq non-causal").grid(16, 64, 48) == TokenGrid(4, 8, 6)
    assert make("kl", patch_size=(1, 2, 3)).grid(17, 64, 48) == TokenGrid(5, 4, 2)
    grid = TokenGrid(5, 8, 6)
    assert grid.tokens_per_step == 48 and grid.num_tokens == 240


def test_a_size_that_does_not_fit_names_those_that_do() -> None:
    for adapter, factor, nearest in (
        (make("fsq"), 8, "128 and 136"),
        (make("kl", patch_size=(1, 2, 1)), 16, "128 and 144"),
    ):
        message = rf"^TokenizerAdapter: height must be a multiple of {factor} \(the tokenizer's spatial factor.*"
        with pytest.raises(ValueError, match=rf"{message}got 130; the nearest sizes are {nearest}"):
            adapter.grid(17, 130, 64)
        with pytest.raises(ValueError, match=rf"{message}got 130"):
            adapter.encode(torch.zeros(1, 3, 5, 130, 64))
        with pytest.raises(ValueError, match=rf"{message}got 130"):
            adapter.stream().push(torch.zeros(1, 3, 5, 130, 64))


@pytest.mark.parametrize("patch_size", [(2, 1, 1), (1, 0, 1)])
def test_patches_are_one_step_long(patch_size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"patch_size must be 1 in time, and 1 or more .*, got \(\d, \d, \d\)"):
        TokenizerAdapter(tokenizer("kl"), patch_size=patch_size)


def test_discrete_tokens_are_single_codes() -> None:
    with pytest.raises(ValueError, match=r"patch_size must be \(1, 1, 1\), got \(1, 2, 2\)"):
        TokenizerAdapter(tokenizer("fsq"), patch_size=(1, 2, 2))


# The vocabulary


def test_special_ids_come_after_the_codebook(discrete: TokenizerAdapter) -> None:
    assert discrete.codebook_size == 32768 and discrete.vocab_size == 32771
    assert discrete.special_ids == {"bos": 32768, "eos": 32769, "pad": 32770}
    bare = make("fsq", special_tokens=())
    assert bare.vocab_size == bare.codebook_size and bare.special_ids == {}
    with pytest.raises(ValueError, match="special_tokens must differ"):
        make("fsq", special_tokens=("bos", "bos"))


@settings(max_examples=40)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=6).map(tuple), data=st.data())
def test_factors_join_to_the_ids_that_were_split(levels: tuple[int, ...], data: st.DataObject) -> None:
    vocabulary = Vocabulary(levels=levels, special_tokens=("bos",))
    sizes, codebook = vocabulary.factor_sizes, math.prod(levels)
    assert math.prod(sizes) == codebook == vocabulary.codebook_size
    drawn = data.draw(st.lists(st.integers(0, codebook - 1), max_size=6))
    ids = torch.tensor([[0, codebook - 1, *drawn]])
    factors = vocabulary.split(ids)
    assert factors.shape == (*ids.shape, len(sizes)) and factors.dtype == torch.int64
    assert all(factors[..., k].min() >= 0 and factors[..., k].max() < size for k, size in enumerate(sizes))
    assert torch.equal(vocabulary.join(factors), ids)
    place = [math.prod(sizes[:k]) for k in range(len(sizes))]  # least significant first
    assert torch.equal((factors * torch.tensor(place)).sum(-1), ids)


def test_factors_are_consecutive_levels_of_near_equal_size() -> None:
    assert TokenizerAdapter(toy_tokenizer("vidtok_fsq_causal_488_262144").float()).factor_sizes == (512, 512)
    assert sorted(make("fsq").factor_sizes) == [64, 512]
    assert Vocabulary(levels=(8, 5, 5, 5), special_tokens=()).factor_sizes == (40, 25)
    adapter = make("fsq")
    ids = adapter.encode(video()).ids
    digits = adapter.tokenizer.indices_to_latents(ids.view(1, 1, 1, -1))[0, :, 0, 0]  # (levels, n)
    low = adapter.split(ids)[0, :, 0]
    channels = round(math.log(adapter.factor_sizes[0], 8))
    for token in range(ids.shape[1]):
        same = (digits[:channels] == digits[:channels, token : token + 1]).all(0)
        assert torch.equal(low == low[token], same)  # a factor is its channels' codes


def test_only_codebook_ids_are_split(discrete: TokenizerAdapter) -> None:
    with pytest.raises(ValueError, match=r"ids of codes must be 0 to 32767, got 32768 at position \(0, 2\)"):
        discrete.split(torch.tensor([[0, 1, discrete.special_ids["bos"], 32769]]))
    low, high = discrete.factor_sizes
    with pytest.raises(ValueError, match=rf"factor 1 must be 0 to {high - 1}, got {high} at position \(1,\)"):
        discrete.join(torch.tensor([[0, 0], [low - 1, high]]))
    with pytest.raises(ValueError, match=r"factors must end in a dimension of 2, got \(4, 3\)"):
        discrete.join(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be whole numbers, got torch.float32"):
        discrete.split(torch.zeros(1, 4))


# Mistakes


@pytest.mark.parametrize("wrong", [-1, 32768, 32771])
def test_the_first_id_that_is_no_code_is_named(discrete: TokenizerAdapter, wrong: int) -> None:
    grid = TokenGrid(1, 2, 2)
    ids = torch.tensor([[0, 5, 32767, 1], [2, wrong, 3, -7]])
    message = rf"must be 0 to 32767, got {wrong} at position \(1, "
    with pytest.raises(ValueError, match=message + r"1\)"):
        discrete.ids_to_indices(ids, grid)
    with pytest.raises(ValueError, match=message + r"1\)"):
        discrete.tokens_from_ids(ids, grid)
    with pytest.raises(ValueError, match=message):
        discrete.indices_to_ids(ids.view(2, 1, 2, 2), grid)
    tokens = VideoTokens(grid_values=ids.view(2, 1, 2, 2), num_frames=torch.tensor([1, 1]), batch_size=[2])
    with pytest.raises(ValueError, match=message):
        discrete.decode(tokens)


def test_tokens_that_do_not_fill_the_grid_are_refused(discrete: TokenizerAdapter, continuous: TokenizerAdapter) -> None:
    grid = TokenGrid(2, 2, 2)
    ids = torch.zeros(1, 9, dtype=torch.int64)
    message = r"TokenGrid\(T=2, H=2, W=2\) takes 8 tokens, got 9; take out special tokens and give whole steps"
    for call in (discrete.ids_to_indices, discrete.tokens_from_ids):
        with pytest.raises(ValueError, match=message):
            call(ids, grid)
    for call in (continuous.patches_to_latents, continuous.tokens_from_patches):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(1, 9, continuous.patch_dim), grid)
    with pytest.raises(ValueError, match=r"indices must fill TokenGrid.*, got \(1, 3, 2, 2\)"):
        discrete.indices_to_ids(torch.zeros(1, 3, 2, 2, dtype=torch.int64), grid)


def test_patches_of_a_wrong_width_are_refused(continuous: TokenizerAdapter) -> None:
    for call in (continuous.patches_to_latents, continuous.tokens_from_patches):
        with pytest.raises(ValueError, match=rf"patches must have {continuous.patch_dim} values, got 9"):
            call(torch.zeros(1, 8, 9), TokenGrid(2, 2, 2))


def test_latents_that_patches_do_not_divide_are_refused(continuous: TokenizerAdapter) -> None:
    with pytest.raises(ValueError, match=r"latents must be .* got \(1, 4, 2, 2, 3\)"):
        continuous.latents_to_patches(torch.zeros(1, 4, 2, 2, 3))


def test_one_kind_is_not_taken_for_the_other(discrete: TokenizerAdapter, continuous: TokenizerAdapter) -> None:
    ids, patches = discrete.encode(video()), continuous.encode(video())
    with pytest.raises(ValueError, match="a discrete adapter got tokens of the other kind"):
        discrete.decode(patches)
    with pytest.raises(ValueError, match="a continuous adapter got tokens of the other kind"):
        continuous.decode(ids)
    with pytest.raises(ValueError, match=r"continuous tokens have no ids; use \.patches"):
        patches.ids  # noqa: B018
    with pytest.raises(ValueError, match=r"discrete tokens have no patches; use \.ids"):
        ids.patches  # noqa: B018
    for name in ("vocab_size", "codebook_size", "special_ids", "factor_sizes"):
        with pytest.raises(ValueError, match="continuous tokens have no vocabulary; use patches"):
            getattr(continuous, name)
    with pytest.raises(ValueError, match="no vocabulary"):
        continuous.tokens_from_ids(torch.zeros(1, 4, dtype=torch.int64), TokenGrid(1, 2, 2))
    with pytest.raises(ValueError, match="discrete tokens are ids; patches are for KL models"):
        discrete.latents_to_patches(torch.zeros(1, 5, 1, 1, 1))
    with pytest.raises(ValueError, match="discrete tokens are ids"):
        discrete.patches_to_latents(torch.zeros(1, 1, 5), TokenGrid(1, 1, 1))
    with pytest.raises(ValueError, match="discrete tokens are ids"):
        discrete.tokens_from_patches(torch.zeros(1, 1, 5), TokenGrid(1, 1, 1))
    with pytest.raises(ValueError, match="discrete tokens are ids"):
        discrete.fit_latent_stats([video()])


def test_frames_that_the_tokens_do_not_have_are_refused(discrete: TokenizerAdapter) -> None:
    tokens = discrete.encode(video(9))
    tokens.num_frames = torch.tensor([13])
    with pytest.raises(ValueError, match="13 frames have 4 latent steps, got tokens of 3"):
        discrete.decode(tokens)


# Statistics


def test_fitted_statistics_make_patches_standard() -> None:
    adapter = make("kl", patch_size=(1, 1, 1))
    clips = [video(seed=seed, b=2) for seed in range(3)]
    adapter.fit_latent_stats(clips)
    patches = torch.cat([adapter.encode(clip).patches for clip in clips]).flatten(0, 1)
    torch.testing.assert_close(patches.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(patches.std(0, correction=0), torch.ones(4), rtol=1e-4, atol=0)
    together = make("kl")
    together.fit_latent_stats(iter([torch.cat(clips)]))
    torch.testing.assert_close(together.latent_mean, adapter.latent_mean)
    torch.testing.assert_close(together.latent_std, adapter.latent_std)
    clip = clips[0]
    back = adapter.latents_of(adapter.encode(clip))
    assert difference(back, adapter.tokenizer.encode(clip).latents) < 1e-6
    with pytest.raises(ValueError, match="needs at least one video"):
        adapter.fit_latent_stats([])


# Tokens as a tensorclass


def test_tokens_slice_stack_and_store(adapter: TokenizerAdapter, tmp_path: Path) -> None:
    tokens = adapter.encode(video(b=3))
    assert tokens.batch_size == (3,)
    part = tokens[1:3]
    assert part.batch_size == (2,) and part.grid == tokens.grid and part.num_frames.tolist() == [9, 9]
    assert torch.equal(values(part), values(tokens)[1:3])
    stacked = torch.stack([tokens[i] for i in range(3)])
    assert torch.equal(values(stacked), values(tokens))
    assert torch.equal(values(torch.cat([tokens[:1], tokens[1:]])), values(tokens))
    tokens.memmap(tmp_path)
    stored = VideoTokens.load_memmap(tmp_path)
    assert torch.equal(values(stored), values(tokens)) and stored.grid == tokens.grid
    assert torch.equal(adapter.decode(stored), adapter.decode(tokens))


# Streams


@pytest.mark.parametrize("split", [[1] * 10, [3, 1, 4, 2], [10]])
def test_streamed_tokens_equal_the_whole_clips(causal: TokenizerAdapter, split: list[int]) -> None:
    adapter = TokenizerAdapter(copy.deepcopy(causal.tokenizer).double(), patch_size=causal.config.patch_size)
    clip = random_video(10, b=2, w=32)
    whole, stream = adapter.encode(clip), adapter.stream()
    parts = [stream.push(part) for part in clip.split(split, dim=2)] + [stream.flush()]
    for part in parts:
        assert part.grid_values.shape[2:4] == whole.grid_values.shape[2:4]
        assert part.discrete == whole.discrete and part.batch_size == (2,)
    torch.testing.assert_close(torch.cat([values(p) for p in parts], dim=1), values(whole), rtol=0, atol=1e-9)
    assert sum(part.num_frames for part in parts).tolist() == [10, 10]
    decoder = adapter.decoder_stream()
    frames = [decoder.push(part) for part in parts] + [decoder.flush()]
    assert difference(torch.cat(frames, dim=2)[:, :, :10], adapter.decode(whole)) < EXACT


def test_streams_of_tokens_fork_and_interleave(causal: TokenizerAdapter) -> None:
    clips = [video(9, seed=seed) for seed in range(2)]
    for clip in clips:
        clip[:, :, :5] = clips[0][:, :, :5]
    stream = causal.stream()
    first = values(stream.push(clips[0][:, :, :5]))
    branches = [stream, stream.fork()]
    rest: list[list[Tensor]] = [[], []]
    for i in range(5, 9):
        for branch, clip, parts in zip(branches, clips, rest, strict=True):
            parts.append(values(branch.push(clip[:, :, i : i + 1])))
    for clip, parts in zip(clips, rest, strict=True):
        whole = values(causal.encode(clip))
        torch.testing.assert_close(torch.cat([first, *parts], dim=1), whole, rtol=0, atol=1e-4)


def test_decoding_a_stream_without_lookahead_never_waits(causal: TokenizerAdapter) -> None:
    tokens, f = causal.encode(video(1 + 3 * causal.temporal_factor)), causal.temporal_factor
    stream = causal.decoder_stream(lookahead=False)
    counts = []
    for step in range(4):
        part = VideoTokens(
            grid_values=tokens.grid_values[:, step : step + 1], num_frames=torch.tensor([f]), batch_size=[1]
        )
        counts.append(stream.push(part).shape[2])
    assert counts == [1, f, f, f] and stream.flush().shape[2] == 0


def test_non_causal_adapters_have_no_streams() -> None:
    adapter = make("fsq non-causal")
    for start in (adapter.stream, adapter.decoder_stream):
        with pytest.raises(ValueError, match="non-causal"):
            start()
