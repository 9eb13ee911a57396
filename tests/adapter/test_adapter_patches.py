"""Patches of KL latents, and the statistics that normalize them."""

import math

import pytest
import torch
from adapters import make, tokenizer, video
from toy_tokenizers import difference

from vidtok_plugin import TokenGrid, TokenizerAdapter


@pytest.fixture(scope="module")
def continuous() -> TokenizerAdapter:
    return make("kl")


@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 1), (1, 2, 3)])
def test_patches_and_latents_convert_exactly_in_both_directions(patch_size: tuple[int, int, int]) -> None:
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


def test_normalized_patches_round_trip_within_rounding() -> None:
    adapter = make("kl", patch_size=(1, 2, 1))
    adapter.latent_mean.copy_(torch.tensor([0.0, 3.0, -20.0, 0.1]))
    adapter.latent_std.copy_(torch.tensor([1.0, 0.03, 7.0, 11.0]))
    noise = torch.randn(2, 4, 3, 4, 6)
    latents = adapter.latent_mean.view(1, 4, 1, 1, 1) + adapter.latent_std.view(1, 4, 1, 1, 1) * noise
    patches = adapter.latents_to_patches(latents)
    back = adapter.patches_to_latents(patches, TokenGrid(3, 2, 6))
    for channel in range(4):
        assert difference(back[:, channel], latents[:, channel]) < 1e-6
    assert difference(adapter.latents_to_patches(back), patches) < 1e-5  # for values around 100 standard deviations


def test_fitted_statistics_give_patches_of_mean_0_and_std_1() -> None:
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


@pytest.mark.parametrize("patch_size", [(2, 1, 1), (1, 0, 1)])
def test_a_patch_size_other_than_1_in_time_or_below_1_is_refused(patch_size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"patch_size must be 1 in time, and 1 or more .*, got \(\d, \d, \d\)"):
        TokenizerAdapter(tokenizer("kl"), patch_size=patch_size)


def test_patches_of_a_wrong_width_are_refused(continuous: TokenizerAdapter) -> None:
    for call in (continuous.patches_to_latents, continuous.tokens_from_patches):
        with pytest.raises(ValueError, match=rf"patches must have {continuous.patch_dim} values, got 9"):
            call(torch.zeros(1, 8, 9), TokenGrid(2, 2, 2))


def test_latents_that_do_not_fill_whole_patches_are_refused(continuous: TokenizerAdapter) -> None:
    with pytest.raises(ValueError, match=r"latents must be .* got \(1, 4, 2, 2, 3\)"):
        continuous.latents_to_patches(torch.zeros(1, 4, 2, 2, 3))


def test_decoding_passes_gradients_to_its_input_only() -> None:
    for name in ("kl", "kl f=2"):
        adapter = make(name)
        tokens = adapter.encode(video())
        patches = tokens.patches.requires_grad_()
        adapter.decode(adapter.tokens_from_patches(patches, tokens.grid)).square().sum().backward()
        assert patches.grad is not None and patches.grad.isfinite().all()
        assert (patches.grad.abs().sum(-1) > 0).all()  # every token matters
        assert all(p.grad is None for p in adapter.parameters())


def test_statistics_of_nan_latents_are_refused() -> None:
    tok = tokenizer("kl")
    with torch.no_grad():
        next(tok.encoder.parameters()).fill_(float("nan"))
    adapter = TokenizerAdapter(tok)
    with pytest.raises(ValueError, match="the encoder's output must be finite, got nan"):
        adapter.fit_latent_stats([video()])
    assert torch.equal(adapter.latent_std, torch.ones(4))
