"""The vocabulary: special ids, factors, sequences with bos and eos, and errors that name the first wrong id."""

import math
import re

import pytest
import torch
from adapters import make, video
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import toy_tokenizer

from vidtok_plugin import TokenGrid, TokenizerAdapter, VideoTokens
from vidtok_plugin.adapter.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def discrete() -> TokenizerAdapter:
    return make("fsq")


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
        assert torch.equal(low == low[token], same)  # a factor holds the codes of its channels


def test_only_codebook_ids_are_split(discrete: TokenizerAdapter) -> None:
    with pytest.raises(ValueError, match=r"codebook ids must be 0 to 32767, got 32768 at position \(0, 2\)"):
        discrete.split(torch.tensor([[0, 1, discrete.special_ids["bos"], 32769]]))
    low, high = discrete.factor_sizes
    with pytest.raises(ValueError, match=rf"factor 1 must be 0 to {high - 1}, got {high} at position \(1,\)"):
        discrete.join(torch.tensor([[0, 0], [low - 1, high]]))
    with pytest.raises(ValueError, match=r"factors must end in a dimension of 2, got \(4, 3\)"):
        discrete.join(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be integers, got torch.float32"):
        discrete.split(torch.zeros(1, 4))


@pytest.mark.parametrize("wrong", [-1, 32768, 32771])
def test_the_first_id_outside_the_codebook_is_named(discrete: TokenizerAdapter, wrong: int) -> None:
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


# Sequences


GRID = TokenGrid(1, 2, 2)


def clips(adapter: TokenizerAdapter, count: int) -> VideoTokens:
    ids = torch.randint(0, adapter.codebook_size, (count, GRID.num_tokens))
    return adapter.tokens_from_ids(ids, GRID)


def test_a_sequence_is_a_clip_between_bos_and_eos(discrete: TokenizerAdapter) -> None:
    tokens = clips(discrete, 3)
    sequences = discrete.sequences(tokens)
    assert (sequences[:, 0] == discrete.special_ids["bos"]).all()
    assert (sequences[:, -1] == discrete.special_ids["eos"]).all()
    assert torch.equal(sequences[:, 1:-1], tokens.ids)


def test_clips_packed_into_rows_are_parsed_back_one_by_one(discrete: TokenizerAdapter) -> None:
    tokens = clips(discrete, 5)
    rows, pad = discrete.sequences(tokens), torch.tensor([discrete.special_ids["pad"]])
    packed = torch.stack([torch.cat([rows[0], rows[1], rows[2]]), torch.cat([rows[3], rows[4], pad.expand(6)])])
    back = discrete.tokens_from_sequences(packed, GRID)
    assert (back == tokens).all() and back.first_step.tolist() == [0] * 5
    assert (discrete.tokens_from_sequences(packed[0], GRID) == tokens[:3]).all()
    assert discrete.tokens_from_sequences(packed[0], GRID, 1).num_frames.tolist() == [1] * 3


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        (0, "eos", "row 1 must have bos at position 0, got eos"),
        (3, "eos", "row 1 must have a code at position 3, got eos"),
        (3, "pad", "row 1 must have a code at position 3, got pad"),
        (5, "bos", "row 1 must have eos at position 5, got bos"),
        (7, "bos", "row 1 must have pad at position 7, got bos"),
    ],
)
def test_the_first_id_out_of_place_is_named(discrete: TokenizerAdapter, place: int, name: str, message: str) -> None:
    pads = torch.full((2, 2), discrete.special_ids["pad"])
    sequences = torch.cat([discrete.sequences(clips(discrete, 2)), pads], dim=1)
    assert len(discrete.tokens_from_sequences(sequences, GRID).ids) == 2
    sequences[1, place] = discrete.special_ids[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        discrete.tokens_from_sequences(sequences, GRID)


def test_errors_name_the_first_row_even_where_it_only_ends_too_early(discrete: TokenizerAdapter) -> None:
    sequences = discrete.sequences(clips(discrete, 2))[:, :-1]
    sequences[1, 0] = discrete.special_ids["eos"]
    with pytest.raises(ValueError, match="row 0 ends 5 ids into one"):
        discrete.tokens_from_sequences(sequences, GRID)
    sequences[0, 2] = -1
    with pytest.raises(ValueError, match="row 0 must have a code at position 2, got -1"):
        discrete.tokens_from_sequences(sequences, GRID)


def test_without_a_pad_every_id_must_belong_to_a_clip() -> None:
    bare = make("fsq", special_tokens=("bos", "eos"))
    sequences = bare.sequences(clips(bare, 2))
    assert len(bare.tokens_from_sequences(sequences, GRID).ids) == 2
    with pytest.raises(ValueError, match="row 0 must have bos at position 6, got -1"):
        bare.tokens_from_sequences(torch.cat([sequences, torch.full((2, 1), -1)], dim=1), GRID)


def test_an_unfinished_clip_is_refused(discrete: TokenizerAdapter) -> None:
    sequences = discrete.sequences(clips(discrete, 2))
    with pytest.raises(ValueError, match="each 6 ids with bos and eos for .* row 0 ends 5 ids into one"):
        discrete.tokens_from_sequences(sequences[:, :-1], GRID)
    with pytest.raises(ValueError, match=r"must be integers of shape \(b, m\) or \(m,\), got torch.float32"):
        discrete.tokens_from_sequences(sequences.float(), GRID)


def test_sequences_need_bos_and_eos_and_the_beginning_of_a_clip(discrete: TokenizerAdapter) -> None:
    bare, tokens = make("fsq", special_tokens=("bos",)), discrete.encode(video())
    with pytest.raises(ValueError, match=r"special_tokens must include bos and eos for sequences, got \('bos',\)"):
        bare.sequences(tokens)
    with pytest.raises(ValueError, match="only tokens from the beginning of their clip can be sequences with bos"):
        discrete.sequences(discrete.steps(tokens, 1, 3))
