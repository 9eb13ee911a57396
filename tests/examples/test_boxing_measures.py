"""The measures of imagined Boxing, on frames drawn by hand."""

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

GREEN, WHITE, BLACK = (110, 156, 66), (214, 214, 214), (0, 0, 0)


@pytest.fixture(scope="module")
def measures(examples_path: None) -> ModuleType:
    return importlib.import_module("boxing_measures")


def picture(
    player: tuple[int, int] | None, opponent: tuple[int, int] | None, size: tuple[int, int] = (6, 4), t: int = 1
) -> Tensor:
    """A ring (1, 3, t, 64, 64) with boxers of `size` whose upper left corners are at the given rows and columns."""
    frame = torch.tensor(GREEN, dtype=torch.float32)[:, None, None].repeat(1, 64, 64)
    frame[:, :8] = 214.0  # the scoreboard, outside the ring
    for corner, color in ((player, WHITE), (opponent, BLACK)):
        if corner is not None:
            rows, columns = (slice(at, at + n) for at, n in zip(corner, size, strict=True))
            frame[:, rows, columns] = torch.tensor(color, dtype=torch.float32)[:, None, None]
    return (frame / 127.5 - 1)[None, :, None].repeat(1, 1, t, 1, 1)


def test_boxers_are_counted_by_color(measures: ModuleType) -> None:
    def counts(video: Tensor) -> list:
        return measures.pixel_counts(measures.boxer_coverage(video)).tolist()

    assert counts(picture((20, 20), (30, 40))) == [[[24], [24]]]
    assert counts(picture(None, (30, 40))) == [[[0], [24]]]


def test_distance_is_between_the_players_centroids(measures: ModuleType) -> None:
    distance = measures.player_distance(picture((23, 24), (30, 40)), picture((20, 20), (30, 30)))
    assert distance.shape == (1, 1)
    assert distance.item() == pytest.approx(5.0, abs=1e-4)


def test_distance_resolves_fractions_of_a_pixel(measures: ModuleType) -> None:
    """A boxer whose edge covers most of a pixel has moved by less than one."""
    real, moved = picture((20, 20), None), picture((20, 20), None)
    moved[..., 20:26, 24] = moved[..., 20:26, 24] * 0.2 + moved[..., 20:26, 23] * 0.8
    assert 0.1 < measures.player_distance(moved, real).item() < 0.5


def test_a_missing_player_counts_as_at_the_center_of_the_ring(measures: ModuleType) -> None:
    row, column = (11 + 52) / 2, (13 + 50) / 2
    expected = ((22.5 - row) ** 2 + (21.5 - column) ** 2) ** 0.5
    assert measures.player_distance(picture(None, None), picture((20, 20), None)).item() == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(
    ("made", "present"),
    [
        (picture((20, 20), (30, 40)), True),
        (picture((20, 20), (30, 40), size=(3, 4)), True),  # half the pixels
        (picture((20, 20), (30, 40), size=(6, 8)), True),  # twice the pixels
        (picture((20, 20), None), False),
        (picture(None, (30, 40)), False),
        (picture((20, 20), (30, 40), size=(2, 4)), False),
        (picture((20, 20), (30, 40), size=(7, 8)), False),
    ],
)
def test_boxers_are_present_with_half_to_twice_their_pixels(measures: ModuleType, made: Tensor, present: bool) -> None:
    assert measures.both_present(made, picture((20, 20), (30, 40))).tolist() == [[present]]


def test_sharpness_is_measured_inside_the_ring_only(measures: ModuleType) -> None:
    """42x38 pixels; the edges of a player of 6x4 have 12 differences across and 8 down, of 104, 58 and 148 levels."""
    assert measures.ring_sharpness(picture(None, None)).item() == 0
    across, down = 12 / (42 * 37), 8 / (41 * 38)
    expected = (104 + 58 + 148) / 3 * (across + down) / 2
    assert measures.ring_sharpness(picture((20, 20), None)).item() == pytest.approx(expected, rel=1e-3)


def test_other_sizes_are_refused(measures: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"frames must be 64x64, got \(32, 32\)"):
        measures.boxer_coverage(torch.zeros(1, 3, 1, 32, 32))
