"""There is one action per frame, and it affects exactly the latent step that encodes its frame, and later ones."""

import pytest
import torch
from torch import Tensor

from world_model.actions import ActionSpec, GroupedActions, check_actions, group_actions
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.inputs.action_embedding import ActionEmbedding
from world_model.model import WorldModel
from world_model.transformer.block import TransformerConfig

F = 4  # frames per latent step


def actions_model(kind: str = "discrete", size: int = 5) -> WorldModel:
    tokens = TokenSpec(
        codebook_size=12,
        height=2,
        width=3,
        temporal_factor=F,
        actions=ActionSpec(kind=kind, size=size),  # type: ignore[arg-type]
    )
    sizes = TransformerConfig(width=24, depth=2, heads=2)
    model = WorldModel(WorldModelConfig(tokens=tokens, max_steps=5, transformer=sizes))
    for parameter in model.parameters():  # no weight is zero, as after training
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def steps_changed(model: WorldModel, codes: Tensor, one: Tensor, other: Tensor) -> list[int]:
    """The latent steps whose predictions differ between two sequences of actions (b, t[, a])."""
    with torch.no_grad():
        difference = model(codes, group_actions(one, F)) - model(codes, group_actions(other, F))
    return torch.nonzero(difference.abs().amax(dim=(0, 2, 3, 4)) > 1e-4).flatten().tolist()


def test_actions_are_grouped_by_the_step_of_their_frames() -> None:
    grouped = group_actions(torch.arange(10, 19)[None], F)  # frames 0 .. 8: steps of 1, 4 and 4 frames
    assert grouped.values[0, 1:].tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert grouped.known[0].tolist() == [[False] * 4, [True] * 4, [True] * 4]


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 8, 9])
def test_the_missing_actions_of_a_partial_group_are_unknown(frames: int) -> None:
    grouped = group_actions(torch.rand(2, frames, 3), F)
    assert grouped.values.shape == (2, 1 + -(-(frames - 1) // F), F, 3)
    assert grouped.known[0].flatten()[F:].tolist() == [True] * (frames - 1) + [False] * (-(frames - 1) % F)


def test_the_first_frame_has_no_action() -> None:
    model, codes = actions_model(), torch.randint(12, (2, 3, 2, 3))
    one = torch.randint(5, (2, 9))
    other = one.clone()
    other[:, 0] = (one[:, 0] + 1) % 5
    assert steps_changed(model, codes, one, other) == []


def test_permuting_the_actions_within_a_group_changes_its_step_and_those_after() -> None:
    model, codes = actions_model(), torch.randint(12, (1, 4, 2, 3))
    one = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 2, 3, 4, 4, 4, 4]])
    for order in ([6, 5, 7, 8], [5, 6, 8, 7], [8, 7, 6, 5]):  # step 2 is frames 5 .. 8
        other = one.clone()
        other[:, 5:9] = one[:, order]
        assert steps_changed(model, codes, one, other) == [2, 3]


def test_permuting_equal_actions_changes_nothing() -> None:
    model, codes = actions_model(), torch.randint(12, (1, 4, 2, 3))
    one = torch.tensor([[0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]])
    other = one.clone()
    other[:, 1:5] = one[:, [3, 1, 4, 2]]
    assert steps_changed(model, codes, one, other) == []


def test_swapping_the_actions_of_two_steps_changes_the_earlier_step_and_those_after() -> None:
    model, codes = actions_model(), torch.randint(12, (1, 5, 2, 3))
    one = torch.randint(5, (1, 17))
    one[:, 5:9], one[:, 9:13] = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 1, 0])
    other = one.clone()
    other[:, 5:9], other[:, 9:13] = one[:, 9:13], one[:, 5:9]
    assert steps_changed(model, codes, one, other) == [2, 3, 4]


@pytest.mark.parametrize("place", range(F))
def test_every_action_of_a_step_counts(place: int) -> None:
    model, codes = actions_model("continuous", 2), torch.randint(12, (1, 3, 2, 3))
    one = torch.randn(1, 9, 2)
    other = one.clone()
    other[:, 5 + place] += 1
    assert steps_changed(model, codes, one, other) == [2]


def test_an_unknown_action_differs_from_every_known_one() -> None:
    embedding = ActionEmbedding(ActionSpec(kind="discrete", size=3), F, width=8)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    known = torch.ones(1, 1, F, dtype=torch.bool)
    unknown = embedding(GroupedActions(values=torch.zeros(1, 1, F, dtype=torch.int64), known=~known))
    for action in range(3):
        values = torch.full((1, 1, F), action)
        assert not torch.allclose(embedding(GroupedActions(values=values, known=known)), unknown)
        # the value of an unknown action does not matter
        assert torch.equal(embedding(GroupedActions(values=values, known=~known)), unknown)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_accepts_float_actions(dtype: torch.dtype) -> None:
    """Continuous actions are always float32; with weights of another precision PyTorch used to raise an error."""
    embedding = ActionEmbedding(ActionSpec(kind="continuous", size=2), F, width=8).to(dtype)
    assert embedding(group_actions(torch.randn(1, 9, 2), F)).dtype == dtype


def test_an_untrained_model_ignores_actions() -> None:
    embedding = ActionEmbedding(ActionSpec(kind="discrete", size=3), F, width=8)
    assert not embedding(group_actions(torch.randint(3, (2, 9)), F)).any()


@pytest.mark.parametrize(
    ("actions", "spec", "message"),
    [
        (torch.zeros(1, 5), ActionSpec(kind="discrete", size=3), "must be integers"),
        (torch.full((1, 5), 3), ActionSpec(kind="discrete", size=3), r"in 0\.\.2.*got 3 at position \(0, 0\)"),
        (torch.zeros(1, 5, 3), ActionSpec(kind="continuous", size=2), r"shape \(b, t, 2\)"),
        (
            torch.full((1, 5, 2), float("nan")),
            ActionSpec(kind="continuous", size=2),
            r"finite in float32, got nan at position \(0, 0, 0\)",
        ),
        (torch.full((1, 5, 2), 1e300, dtype=torch.float64), ActionSpec(kind="continuous", size=2), "finite in float32"),
        (
            torch.zeros(1, 5, 2).numpy(),
            ActionSpec(kind="continuous", size=2),
            "must be a torch.Tensor, got ndarray; use",
        ),
        ([[0, 1]], ActionSpec(kind="discrete", size=3), "must be a torch.Tensor, got list"),
        (
            torch.tensor([[2**64 - 1]], dtype=torch.uint64),
            ActionSpec(kind="discrete", size=3),
            "got 18446744073709551615",
        ),
        (torch.zeros(1, 5, dtype=torch.int64), ActionSpec(), "without actions"),
    ],
)
def test_actions_that_do_not_fit_are_named(actions: Tensor, spec: ActionSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_actions(actions, spec, "rollout", values=True)


def test_a_model_with_actions_needs_them_for_every_step() -> None:
    model, codes = actions_model(), torch.randint(12, (1, 3, 2, 3))
    with pytest.raises(ValueError, match="each of the 3 latent steps, got none"):
        model(codes)
    with pytest.raises(ValueError, match="got 2"):
        model(codes, group_actions(torch.zeros(1, 5, dtype=torch.int64), F))
