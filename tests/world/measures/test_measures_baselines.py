"""The baselines follow their definitions, on the same tokens as the model and for any codebook size."""

from pathlib import Path

import pytest
import torch
from stores import write_episodes
from torch import Tensor

from vidtok_plugin.adapter.vocabulary import Vocabulary, split_codes
from vidtok_plugin.store.reader import TokenStore
from world_model.measures.baselines import Baselines
from world_model.measures.store_tokens import episode_tokens


def sticky_episode(steps: int, stay: float) -> Tensor:
    """Each position keeps its code with probability `stay`, else it draws one of its own four codes uniformly."""
    codes = [torch.randint(4, (2, 2))]
    for _ in range(steps - 1):
        codes.append(torch.where(torch.rand(2, 2) < stay, codes[-1], torch.randint(4, (2, 2))))
    return torch.stack(codes) + torch.tensor([[0, 4], [8, 12]])


def probabilities(baselines: Baselines, before: int, position: tuple[int, int], codes: range) -> Tensor:
    """The unigram and copy probabilities (2, codes) of each code at a position, after the code `before`."""
    windows = torch.zeros(len(codes), 2, 2, 2, dtype=torch.int64)
    windows[:, 0] = before
    windows[:, 1, position[0], position[1]] = torch.tensor(codes)
    losses = torch.stack(baselines.token_losses(windows)).sum(-1)
    return (-losses[:, :, 0, position[0], position[1]]).exp()


@pytest.mark.parametrize("sizes", [(16,), (4, 4), (2, 8)])
def test_unigram_is_the_frequency_at_each_position_however_codes_are_factored(sizes: tuple[int, ...]) -> None:
    baselines = Baselines.fit([sticky_episode(4000, 0.0)], sizes)
    unigram = probabilities(baselines, 0, (0, 1), range(16))[0]
    torch.testing.assert_close(unigram[4:8], torch.full((4,), 0.25, dtype=torch.float64), atol=0.03, rtol=0)
    assert unigram[8:].sum() < 0.01


@pytest.mark.parametrize("sizes", [(16,), (4, 4), (8, 2)])
def test_both_are_distributions_over_all_codes(sizes: tuple[int, ...]) -> None:
    baselines = Baselines.fit([sticky_episode(60, 0.5)], sizes)
    for position in ((0, 0), (1, 1)):
        total = probabilities(baselines, 5, position, range(16)).sum(-1)
        torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("stay", [0.0, 0.6, 0.9])
def test_copy_finds_how_often_codes_stay(stay: float) -> None:
    for sizes in ((16,), (4, 4)):
        baselines = Baselines.fit([sticky_episode(3000, stay) for _ in range(2)], sizes)
        assert baselines.copy_weight == pytest.approx(stay, abs=0.04)


def test_copy_mixes_the_last_token_with_unigram() -> None:
    for sizes in ((16,), (4, 4)):
        baselines = Baselines.fit([sticky_episode(500, 0.7)], sizes)
        unigram, copy = probabilities(baselines, 6, (0, 1), range(16))
        expected = (1 - baselines.copy_weight) * unigram
        expected[6] += baselines.copy_weight
        torch.testing.assert_close(copy, expected)


def test_a_change_stays_possible_if_training_had_none() -> None:
    """Expectation maximisation used to reach a weight of 1, and the first change then had infinite loss."""
    still = Baselines.fit([torch.full((400, 2, 2), code) for code in range(16)], (16,))
    copy = probabilities(still, 3, (0, 0), range(16))[1]
    assert still.copy_weight > 0.99 and copy.min() > 1e-6


def test_smoothing_helps_if_data_are_few() -> None:
    """Codes never seen at a position must have finite loss."""
    few = Baselines.fit([torch.randint(16, (20, 2, 2))], (16,))
    held_out = torch.randint(16, (50, 5, 2, 2))
    assert few.token_losses(held_out)[0].mean() < 3.2  # log 16 = 2.8
    many = Baselines.fit([sticky_episode(2000, 0.0)], (16,))
    assert few.tables[0].levels[0].smoothing > many.tables[0].levels[0].smoothing


def test_memory_depends_on_the_tokens_and_not_on_the_codebook() -> None:
    codes = torch.randint(512, (40, 4, 4)) * 513  # both factors equal: the second follows from the first
    baselines = Baselines.fit([codes.repeat(20, 1, 1)], (512, 512))
    unigram, _ = baselines.token_losses(codes[None, :10])
    assert unigram.shape == (1, 9, 4, 4, 2)
    assert unigram[..., 1].mean() < 0.1 < 2 < unigram[..., 0].mean()
    tensors = [
        t for table in baselines.tables for level in table.levels for t in (level.pairs.keys, level.contexts.keys)
    ]
    assert max(len(t) for t in tensors) <= codes.numel()


def test_codes_split_into_the_factors_of_the_vocabulary() -> None:
    vocabulary = Vocabulary(levels=(8, 5, 5, 5), special_tokens=())
    codes = torch.randint(1000, (3, 7))
    assert torch.equal(split_codes(codes, vocabulary.factor_sizes), vocabulary.split(codes))


def test_baselines_fit_a_store(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 7]))
    codes = [store.window(index, 0, int(steps))["codes"] for index, steps in enumerate(store.steps)]
    own, expected = Baselines.fit_store(store, (12,)), Baselines.fit(codes, (12,))
    assert torch.equal(own.token_losses(codes[1][None])[1], expected.token_losses(codes[1][None])[1])


def test_statistics_of_a_large_store_use_evenly_spaced_episodes(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [4] * 10))
    assert len(list(episode_tokens(store))) == 10
    some = list(episode_tokens(store, max_tokens=3 * 4 * 6))
    assert len(some) == 3 and int(some[0][0, 0, 0]) == 0 and int(some[-1][0, 0, 0]) == 9
