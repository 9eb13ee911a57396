"""The baselines are what their definitions say, and scored on the same tokens as the model."""

from pathlib import Path

import pytest
import torch
from stores import write_episodes
from tensordict import TensorDict
from torch import Tensor
from world_model.baselines import Baselines

from vidtok_plugin.store import TokenStore


def sticky_episode(steps: int, stay: float) -> Tensor:
    """Each place keeps its code with probability `stay`, and else draws one of its own four evenly."""
    codes = [torch.randint(4, (2, 2))]
    for _ in range(steps - 1):
        codes.append(torch.where(torch.rand(2, 2) < stay, codes[-1], torch.randint(4, (2, 2))))
    return torch.stack(codes) + torch.tensor([[0, 4], [8, 12]])


def test_unigram_is_each_places_frequencies() -> None:
    baselines = Baselines.fit([sticky_episode(4000, 0.0)], 16)
    torch.testing.assert_close(baselines.unigram.sum(-1), torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(
        baselines.unigram[0, 1, 4:8], torch.full((4,), 0.25, dtype=torch.float64), atol=0.03, rtol=0
    )
    assert baselines.unigram[0, 1, 8:].sum() < 0.01


@pytest.mark.parametrize("stay", [0.0, 0.6, 0.9])
def test_copy_finds_how_often_codes_stay(stay: float) -> None:
    baselines = Baselines.fit([sticky_episode(3000, stay) for _ in range(2)], 16)
    assert baselines.copy_weight == pytest.approx(stay, abs=0.04)


def test_losses_are_those_of_the_distributions() -> None:
    baselines = Baselines.fit([sticky_episode(500, 0.7)], 16)
    windows = torch.stack([sticky_episode(5, 0.7) for _ in range(3)])
    unigram, copy = baselines.token_losses(windows)
    assert unigram.shape == copy.shape == (3, 4, 2, 2)
    code, before = int(windows[1, 3, 0, 1]), int(windows[1, 2, 0, 1])
    p = float(baselines.unigram[0, 1, code])
    assert float(unigram[1, 2, 0, 1]) == pytest.approx(-torch.tensor(p).log().item(), rel=1e-4)
    mixed = baselines.copy_weight * (code == before) + (1 - baselines.copy_weight) * p
    assert float(copy[1, 2, 0, 1]) == pytest.approx(-torch.tensor(mixed).log().item(), rel=1e-4)


def test_smoothing_helps_where_data_are_few() -> None:
    """Codes never seen at a place must not cost infinitely much."""
    few = Baselines.fit([torch.randint(16, (20, 2, 2))], 16)
    held_out = torch.randint(16, (50, 5, 2, 2))
    assert few.token_losses(held_out)[0].mean() < 3.2  # log 16 = 2.8
    assert few.smoothing > Baselines.fit([sticky_episode(2000, 0.0)], 16).smoothing


def test_the_mean_is_over_the_valid_steps_after_the_first() -> None:
    baselines = Baselines.fit([sticky_episode(300, 0.5)], 16)
    windows = torch.stack([sticky_episode(4, 0.5) for _ in range(2)])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    unigram, copy = baselines.token_losses(windows)
    batches = [TensorDict({"codes": windows[i : i + 1], "valid": valid[i : i + 1]}, [1]) for i in range(2)]
    expected = torch.cat([unigram[0], unigram[1, :1]]).mean(), torch.cat([copy[0], copy[1, :1]]).mean()
    assert baselines.cross_entropies(batches) == pytest.approx([float(mean) for mean in expected])
    with pytest.raises(ValueError, match="at least one step to score"):
        baselines.cross_entropies([])


def test_they_are_fitted_on_a_store(tmp_path: Path) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 7]))
    from_store = Baselines.fit_store(store)
    codes = [store.window(index, 0, int(steps))["codes"] for index, steps in enumerate(store.steps)]
    assert torch.equal(from_store.unigram, Baselines.fit(codes, 12).unigram)
