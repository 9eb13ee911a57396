"""One contract for the adapters of every preset, at small width: exact in both directions, in any surroundings.

The last bits of float32 sums depend on the batch, so ids could differ where a value lies within 1e-6 of a rounding
boundary. These clips have no such value.
"""

import copy
import math
from pathlib import Path

import pytest
import torch
from adapters import make_preset, values
from torch import Tensor, nn
from toy_tokenizers import difference, random_video

from vidtok_plugin import TokenGrid, TokenizerAdapter, VideoTokens, presets

EXACT = 1e-11  # float64: rounding errors only
PATCHES = 1e-4  # float32 patches summed in another order, relative to the largest


class Case:
    """A preset's adapter, and two clips that fill three latent steps, with their tokens."""

    def __init__(self, name: str) -> None:
        self.adapter = make_preset(name)
        self.frames = self.adapter.tokenizer.num_frames(3)
        self.clip = self.video(self.frames)
        self.tokens = self.adapter.encode(self.clip)

    @property
    def size(self) -> int:
        return 2 * self.adapter.spatial_factor

    def video(self, num_frames: int, seed: int = 0) -> Tensor:
        return random_video(num_frames, b=2, h=self.size, w=self.size, seed=seed).float()

    @property
    def discrete(self) -> bool:
        return self.adapter.kind == "discrete"

    def same(self, found: Tensor, expected: Tensor) -> None:
        assert torch.equal(found, expected) if self.discrete else difference(found, expected) < PATCHES


@pytest.fixture(scope="module", params=presets())
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


# Exact in both directions


def test_tokens_are_the_tokenizers_own_latents_bit_by_bit(case: Case) -> None:
    adapter, tokens, encoded = case.adapter, case.tokens, case.adapter.tokenizer.encode(case.clip)
    assert torch.equal(adapter.latents_of(tokens), encoded.latents)
    assert torch.equal(adapter.decode(tokens), adapter.tokenizer.decode(encoded.latents))
    assert not tokens.grid_values.requires_grad


def test_kind_dtype_and_grid_are_those_of_the_preset(case: Case) -> None:
    adapter, tokens = case.adapter, case.tokens
    assert case.discrete == tokens.discrete == (adapter.tokenizer.codebook_size is not None)
    assert tokens.grid_values.dtype == (torch.int64 if case.discrete else torch.float32)
    rows = 2 if case.discrete else 1  # KL patches are two rows high
    assert tokens.grid == adapter.grid(case.frames, case.size, case.size) == TokenGrid(3, rows, 2)
    assert values(tokens).shape == (2, 6 * rows) if case.discrete else (2, 6, 2 * adapter.tokenizer.latent_channels)
    assert tokens.num_frames.tolist() == [case.frames] * 2 and tokens.first_step.tolist() == [0, 0]


def test_rearrangements_are_bit_exact_in_raster_order(case: Case) -> None:
    adapter, grid = case.adapter, TokenGrid(3, 4, 5)
    where = (2 * grid.H + 3) * grid.W + 1  # step 2, row 3, column 1
    if case.discrete:
        indices = torch.randint(0, adapter.codebook_size, (2, 3, 4, 5))
        ids = adapter.indices_to_ids(indices, grid)
        assert ids.shape == (2, 60) and torch.equal(adapter.ids_to_indices(ids, grid), indices)
        assert ids[1, where] == indices[1, 2, 3, 1]
    else:
        latents = torch.randn(2, adapter.tokenizer.latent_channels, 3, 8, 5)
        patches = adapter.latents_to_patches(latents)
        assert patches.shape == (2, 60, adapter.patch_dim)
        assert torch.equal(adapter.patches_to_latents(patches, grid), latents)
        assert torch.equal(patches[1, where], latents[1, :, 2, 6:8, 1].T.flatten())


def test_normalization_round_trips_within_a_millionth(case: Case) -> None:
    if case.discrete:
        with pytest.raises(ValueError, match="discrete tokens are ids"):
            case.adapter.fit_latent_stats([case.clip])
        return
    adapter = copy.deepcopy(case.adapter)
    adapter.fit_latent_stats([case.video(case.frames, seed) for seed in range(2)])
    patches = torch.cat([adapter.encode(case.video(case.frames, seed)).patches for seed in range(2)])
    by_channel = patches.unflatten(-1, (2, -1)).flatten(0, 2)
    torch.testing.assert_close(by_channel.mean(0), torch.zeros(by_channel.shape[1]), rtol=0, atol=1e-3)
    torch.testing.assert_close(by_channel.std(0, correction=0), torch.ones(by_channel.shape[1]), rtol=1e-3, atol=0)
    latents = adapter.tokenizer.encode(case.clip).latents
    assert difference(adapter.latents_of(adapter.encode(case.clip)), latents) < 1e-6


def test_generated_tokens_decode_as_encoded_ones_do(case: Case) -> None:
    adapter, tokens = case.adapter, case.tokens
    from_values = adapter.tokens_from_ids if case.discrete else adapter.tokens_from_patches
    generated = from_values(values(tokens).clone(), tokens.grid)
    assert (generated == tokens).all()
    shorter = from_values(values(tokens), tokens.grid, case.frames - 1)
    assert torch.equal(adapter.decode(shorter), adapter.decode(tokens)[:, :, :-1])


def test_decoded_video_has_the_length_of_the_original(case: Case) -> None:
    adapter = case.adapter
    for frames in (1, adapter.tokenizer.num_frames(2) - 1):
        tokens = adapter.encode(case.clip[:1, :, :frames])
        assert tokens.num_frames.tolist() == [frames]
        assert tokens.grid == adapter.grid(frames, case.size, case.size)
        assert adapter.decode(tokens).shape == (1, 3, frames, case.size, case.size)


def test_uint8_video_has_the_tokens_of_scaled_float_video(case: Case) -> None:
    pixels = torch.randint(0, 256, (1, 3, 5, case.size, case.size), dtype=torch.uint8)
    encode = case.adapter.encode
    assert torch.equal(values(encode(pixels)), values(encode(pixels.float() / 127.5 - 1)))


# The vocabulary


def test_special_ids_factors_and_sequences_round_trip(case: Case) -> None:
    adapter, tokens = case.adapter, case.tokens
    if not case.discrete:
        with pytest.raises(ValueError, match="continuous tokens have no vocabulary"):
            adapter.tokens_from_sequences(torch.zeros(1, 8, dtype=torch.int64), tokens.grid)
        return
    assert adapter.vocab_size == adapter.codebook_size + 3 == adapter.tokenizer.codebook_size + 3
    assert adapter.special_ids == {name: adapter.codebook_size + i for i, name in enumerate(("bos", "eos", "pad"))}
    ids = torch.cat([tokens.ids, torch.tensor([[0], [adapter.codebook_size - 1]])], dim=1)
    factors, sizes = adapter.split(ids), torch.tensor(adapter.factor_sizes)
    assert factors.shape == (*ids.shape, len(sizes)) and ((factors >= 0) & (factors < sizes)).all()
    assert math.prod(adapter.factor_sizes) == adapter.codebook_size and torch.equal(adapter.join(factors), ids)
    sequences = adapter.sequences(tokens)
    assert sequences.shape == (2, tokens.grid.num_tokens + 2) and sequences.max() < adapter.vocab_size
    assert (adapter.tokens_from_sequences(sequences, tokens.grid) == tokens).all()


# Surroundings


def test_tokens_do_not_depend_on_autocast(case: Case) -> None:
    """In bfloat16, dozens of ids would change."""
    with torch.autocast("cpu", torch.bfloat16):
        autocast = case.adapter.encode(case.clip)
    assert torch.equal(autocast.grid_values, case.tokens.grid_values)
    assert autocast.grid_values.dtype == case.tokens.grid_values.dtype


def test_tokens_do_not_depend_on_the_batch(case: Case) -> None:
    case.same(values(case.adapter.encode(case.clip[1:])), values(case.tokens[1:]))


def test_tokens_do_not_depend_on_training_mode_or_gradients(case: Case) -> None:
    case.adapter.train()
    found = values(case.adapter.encode(case.clip.clone().requires_grad_()))
    case.adapter.eval()
    assert torch.equal(found, values(case.tokens))


def test_the_tokenizer_stays_frozen_whatever_the_parent_does(case: Case) -> None:
    parent = nn.ModuleDict({"adapter": case.adapter, "head": nn.Dropout()})
    parent.requires_grad_(True)
    parent.train()
    assert parent["head"].training and case.adapter.training and case.adapter.frozen
    assert not any(module.training for module in case.adapter.tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in case.adapter.parameters())
    assert not any(key.startswith("adapter.tokenizer.") for key in parent.state_dict())
    parent.eval()
    assert not case.adapter.training


def test_saved_and_copied_adapters_have_the_hash_and_the_tokens(case: Case, tmp_path: Path) -> None:
    adapter = copy.deepcopy(case.adapter)
    assert adapter.tokenizer is not case.adapter.tokenizer and adapter.hash == case.adapter.hash
    if not case.discrete:
        adapter.latent_mean.normal_()
        assert adapter.hash != case.adapter.hash
    adapter.save_pretrained(tmp_path)
    loaded = TokenizerAdapter.from_pretrained(tmp_path)
    assert loaded.config == adapter.config and loaded.kind == adapter.kind and loaded.hash == adapter.hash
    assert torch.equal(values(loaded.encode(case.clip)), values(adapter.encode(case.clip)))
    assert loaded.frozen and not loaded.tokenizer.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


# Batches, steps and streams


def test_tokens_slice_stack_and_store(case: Case, tmp_path: Path) -> None:
    tokens = case.tokens
    part = tokens[1:2]
    assert part.batch_size == (1,) and part.grid == tokens.grid and torch.equal(values(part), values(tokens)[1:])
    assert torch.equal(values(tokens[1]), values(tokens)[1]) and tokens[1].grid == tokens.grid
    assert (torch.stack([tokens[0], tokens[1]]) == tokens).all()
    assert (torch.cat([tokens[:1], part]) == tokens).all()
    tokens.memmap(tmp_path)
    stored = VideoTokens.load_memmap(tmp_path)
    assert (stored == tokens).all() and stored.grid == tokens.grid and torch.equal(values(stored), values(tokens))


def test_cut_steps_join_again_and_separate_clips_do_not(case: Case) -> None:
    adapter, tokens = case.adapter, case.tokens
    parts = [adapter.steps(tokens, 0, 1), adapter.steps(tokens, 1, 3)]
    assert (adapter.join_steps(parts) == tokens).all()
    later = adapter.encode(case.video(case.frames, seed=1))
    with pytest.raises(ValueError, match="part 1 must begin at step 3 of the clip, but begins at step 0"):
        adapter.join_steps([tokens, later])
    with pytest.raises((RuntimeError, IndexError)):
        torch.cat([tokens, later], dim=1)


def test_streamed_tokens_equal_the_whole_clips(case: Case) -> None:
    if not case.adapter.tokenizer.causal:
        for start in (case.adapter.stream, case.adapter.decoder_stream):
            with pytest.raises(ValueError, match="non-causal"):
                start()
        return
    adapter = copy.deepcopy(case.adapter).double()
    whole, stream = adapter.encode(case.clip.double()), adapter.stream()
    pieces = case.clip.double().split([2, case.frames - 3, 1], dim=2)
    parts = [stream.push(piece) for piece in pieces] + [stream.flush()]
    joined = adapter.join_steps(parts)
    assert joined.num_frames.tolist() == [case.frames] * 2 and joined.grid == whole.grid
    assert difference(values(joined), values(whole)) < EXACT
    decoder = adapter.decoder_stream()
    frames = torch.cat([*(decoder.push(part) for part in parts), decoder.flush()], dim=2)
    assert difference(frames, adapter.decode(whole)) < EXACT
