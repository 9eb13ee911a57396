"""The adapter's hash, sizes and errors; test_adapter_contract.py tests what holds for every preset."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import KINDS, make, tokenizer, video
from toy_tokenizers import toy_tokenizer

from vidtok_plugin import TokenGrid, TokenizerAdapter


@pytest.fixture(scope="module", params=KINDS)
def adapter(request: pytest.FixtureRequest) -> TokenizerAdapter:
    return make(request.param)


@pytest.fixture(scope="module")
def discrete() -> TokenizerAdapter:
    return make("fsq")


@pytest.fixture(scope="module")
def continuous() -> TokenizerAdapter:
    return make("kl")


# The hash


def test_whatever_changes_tokens_or_decoding_changes_the_hash() -> None:
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


def test_use_copies_and_saving_leave_the_hash_unchanged(adapter: TokenizerAdapter, tmp_path: Path) -> None:
    before = adapter.hash
    adapter.encode(video(b=2))
    adapter.train()
    assert adapter.hash == before == copy.deepcopy(adapter).to("cpu").hash
    adapter.eval()
    adapter.save_pretrained(tmp_path)
    assert TokenizerAdapter.from_pretrained(tmp_path).hash == before


# Sizes


def test_the_grid_counts_patches() -> None:
    assert make("fsq").grid(17, 64, 48) == TokenGrid(5, 8, 6)
    assert make("fsq").grid(16, 64, 48) == TokenGrid(5, 8, 6)  # the last group is completed
    assert make("fsq non-causal").grid(16, 64, 48) == TokenGrid(4, 8, 6)
    assert make("kl", patch_size=(1, 2, 3)).grid(17, 64, 48) == TokenGrid(5, 4, 2)
    grid = TokenGrid(5, 8, 6)
    assert grid.tokens_per_step == 48 and grid.num_tokens == 240


def test_a_size_that_does_not_fit_is_refused_with_the_nearest_sizes_that_do() -> None:
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


def test_discrete_tokens_are_single_codes() -> None:
    with pytest.raises(ValueError, match=r"patch_size must be \(1, 1, 1\), got \(1, 2, 2\)"):
        TokenizerAdapter(tokenizer("fsq"), patch_size=(1, 2, 2))


# Errors


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter\.yaml; give a folder that save_pretrained wrote"):
        TokenizerAdapter.from_pretrained(tmp_path)


def test_tokens_that_do_not_fill_the_grid_are_refused(discrete: TokenizerAdapter, continuous: TokenizerAdapter) -> None:
    grid = TokenGrid(2, 2, 2)
    ids = torch.zeros(1, 9, dtype=torch.int64)
    message = r"TokenGrid\(T=2, H=2, W=2\) has 8 tokens, got 9; remove special tokens and give whole steps"
    for call in (discrete.ids_to_indices, discrete.tokens_from_ids):
        with pytest.raises(ValueError, match=message):
            call(ids, grid)
    for call in (continuous.patches_to_latents, continuous.tokens_from_patches):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(1, 9, continuous.patch_dim), grid)
    with pytest.raises(ValueError, match=r"indices must fill TokenGrid.*, got \(1, 3, 2, 2\)"):
        discrete.indices_to_ids(torch.zeros(1, 3, 2, 2, dtype=torch.int64), grid)


def test_tokens_and_calls_of_the_other_kind_are_refused(
    discrete: TokenizerAdapter, continuous: TokenizerAdapter
) -> None:
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


def test_a_number_of_frames_that_does_not_fit_the_steps_is_refused(discrete: TokenizerAdapter) -> None:
    tokens = discrete.encode(video(9))
    tokens.num_frames = torch.tensor([13])
    with pytest.raises(ValueError, match="13 frames have 4 latent steps, got tokens of 3"):
        discrete.decode(tokens)


def test_special_tokens_given_as_one_string_are_refused() -> None:
    with pytest.raises(ValueError, match=r"special_tokens must be several names, got 'bos'"):
        make("fsq", special_tokens="bos")


def test_a_video_without_frames_has_no_grid(discrete: TokenizerAdapter) -> None:
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        discrete.grid(0, 8, 8)
    for shape in ((3, 5, 8, 8), (8,)):
        with pytest.raises(ValueError, match=r"video must have the shape \(b, 3, t, h, w\), got \("):
            discrete.encode(torch.zeros(shape))


def test_tokens_of_another_shape_are_refused(discrete: TokenizerAdapter, continuous: TokenizerAdapter) -> None:
    grid = TokenGrid(1, 2, 2)
    with pytest.raises(ValueError, match=r"tokens must have the shape \(b, n\), got \(4,\)"):
        discrete.tokens_from_ids(torch.zeros(4, dtype=torch.int64), grid)
    with pytest.raises(ValueError, match=r"tokens must have the shape \(b, n, patch_dim\), got \(4, 8\)"):
        continuous.tokens_from_patches(torch.zeros(4, 8), grid)
    with pytest.raises(ValueError, match=r"batch size \(b,\), got \(\); use tokens\[i : i \+ 1\] for a single video"):
        discrete.decode(discrete.encode(video())[0])


def test_int32_ids_become_int64(discrete: TokenizerAdapter) -> None:
    ids = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
    assert discrete.tokens_from_ids(ids, TokenGrid(1, 2, 2)).ids.dtype == torch.int64
