"""Teacher-forced measures of models whose scores are known."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured_models import random_model
from stores import METADATA, write_episodes
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.store.reader import TokenStore
from world_model import WorldModel
from world_model.data import WindowDataset, token_spec, window_actions
from world_model.heads.base import TokenScores
from world_model.measures import cross_entropies
from world_model.measures.baselines import Baselines
from world_model.measures.teacher_forcing import StepSums, TeacherForced, teacher_forced


def tiny_model() -> WorldModel:
    return random_model(token_spec(METADATA))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    write_episodes(root, "train", [9, 12, 5])
    return write_episodes(root, "validation", [7, 2])


def batches_of(store: Path, size: int = 2) -> list[TensorDict]:
    windows = WindowDataset(TokenStore(store, "validation"), 4, every=3, partial=True)
    return [windows.__getitems__(list(range(i, min(i + size, len(windows))))) for i in range(0, len(windows), size)]


def even_scores(losses: Tensor, correct: Tensor | None) -> TokenScores:
    """Scores with equal weights."""
    return TokenScores(losses=losses, correct=correct, weights=torch.ones(losses.shape[:4]))


def scored(monkeypatch: pytest.MonkeyPatch, score: Callable[[Tensor], TokenScores], store: Path) -> TeacherForced:
    """The measures of a model with the given `score`."""
    model = tiny_model()
    monkeypatch.setattr(model, "score", lambda tokens, actions, state: score(tokens))
    return teacher_forced(model, batches_of(store), None)


def test_a_perfect_model_has_no_loss_and_is_always_right(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perfect(tokens: Tensor) -> TokenScores:
        shape = (*tokens[:, 1:].shape, 2)
        return even_scores(losses=torch.zeros(shape), correct=torch.ones(shape, dtype=torch.bool))

    values = scored(monkeypatch, perfect, store).measured().values
    assert values["cross_entropy"] == 0 and values["cross_entropy_by_factor"] == [0, 0]
    assert values["accuracy"] == 1 and values["accuracy_by_step"] == [1, 1, 1]
    assert values["accuracy_by_position"] == [[1, 1, 1], [1, 1, 1]]
    assert values["copy_accuracy"] == 0  # codes count up by one a step


def test_a_token_is_right_if_all_its_factors_are(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tokens: Tensor) -> TokenScores:
        correct = torch.ones(*tokens[:, 1:].shape, 2, dtype=torch.bool)
        correct[:, :, 0, :, 0] = False
        correct[:, :, :, 2, 1] = False
        return even_scores(losses=torch.full(correct.shape, 0.5) * torch.tensor([1, 3]), correct=correct)

    values = scored(monkeypatch, half, store).measured().values
    assert values["accuracy_by_factor"] == pytest.approx([1 / 2, 2 / 3], abs=1e-4)
    assert values["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert values["accuracy_by_position"] == [[0, 0, 0], [1, 1, 0]]
    assert values["cross_entropy_by_factor"] == [0.5, 1.5] and values["cross_entropy"] == 2


def test_continuous_tokens_have_a_flow_loss_and_name_what_is_not_measured(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flow(tokens: Tensor) -> TokenScores:
        return even_scores(losses=torch.full((*tokens[:, 1:].shape, 1), 0.25), correct=None)

    measured = scored(monkeypatch, flow, store).measured()
    assert measured.values["flow_loss"] == 0.25 and set(measured.not_measured) == {"accuracy", "cross_entropy"}


def test_tokens_count_with_their_weights(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(tokens: Tensor) -> TokenScores:
        """One token of each step is scored, with the weight of all six."""
        losses = torch.full((*tokens[:, 1:].shape, 1), 100.0)
        losses[:, :, 0, 1] = 0.5
        weights = torch.zeros(losses.shape[:4])
        weights[:, :, 0, 1] = 6.0
        return TokenScores(losses=losses, correct=losses < 1, weights=weights)

    values = scored(monkeypatch, masked, store).measured().values
    assert values["cross_entropy"] == 0.5 and values["accuracy"] == 1


def test_only_valid_steps_count_each_at_its_own_step() -> None:
    sums = StepSums()
    values = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(2, 3, 2, 2, 1)
    sums.add(values, torch.tensor([[True, True, True], [True, False, False]]))
    sums.add(values[:1] + 8, torch.tensor([[True, False, False]]))
    assert sums.by_step == pytest.approx([8 / 3, 1, 2])
    assert sums.mean == pytest.approx((0 + 0 + 8 + 1 + 2) / 5)
    never = StepSums()
    never.add(values, torch.tensor([[True, False, False]] * 2))
    assert never.by_step == [0]


def test_no_step_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one step to score, got none"):
        _ = StepSums().mean


def test_copy_accuracy_is_the_fraction_of_unchanged_tokens(tmp_path: Path) -> None:
    window = torch.zeros(1, 3, 2, 3, dtype=torch.int64)
    window[:, 2, 0] = 1  # half of the last step's tokens change
    data = {"codes": window, "valid": torch.ones(1, 3, dtype=torch.bool)}
    data |= {"actions": torch.zeros(1, 3, 2, dtype=torch.int64), "actions_known": torch.ones(1, 3, 2, dtype=torch.bool)}
    values = teacher_forced(tiny_model(), [TensorDict(data, [1])], None).measured().values
    assert values["copy_accuracy_by_step"] == [1, 0.5]
    assert values["copy_accuracy_by_position"] == [[0.5] * 3, [1] * 3]


def test_cross_entropies_score_the_same_tokens(store: Path) -> None:
    model, train, held_out = tiny_model(), TokenStore(store, "train"), TokenStore(store, "validation")
    result = cross_entropies(model, train, held_out, window_steps=4, batch_size=2)
    losses, unigram = [], []
    baselines = Baselines.fit_store(train, (12,))
    for batch in batches_of(store):
        with torch.no_grad():
            losses.append(model.score(batch["codes"], window_actions(batch)).token_losses[batch["valid"][:, 1:]])
        unigram.append(baselines.token_losses(batch["codes"])[0][batch["valid"][:, 1:]])
    assert torch.cat(losses).numel() == 7 * 6
    assert result.world_model == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert result.unigram == pytest.approx(float(torch.cat(unigram).mean()), rel=1e-5)
    assert math.isfinite(result.copy)
