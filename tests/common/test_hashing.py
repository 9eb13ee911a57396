"""Hashes of weights tell apart what has the same bytes."""

import torch

from vidtok_plugin.common.hashing import hash_values, hash_weights


def test_a_hash_of_weights_covers_names_shapes_dtypes_and_values() -> None:
    """Shapes and dtypes were once left out."""
    hashes = [
        hash_weights({"w": torch.zeros(2, 3)}),
        hash_weights({"w": torch.zeros(3, 2)}),
        hash_weights({"w": torch.zeros(2, 3, dtype=torch.int32)}),
        hash_weights({"w": torch.zeros(2, 3)}, "setting"),
        hash_weights({"v": torch.zeros(2, 3)}),
        hash_weights({"w": torch.ones(2, 3)}),
        hash_weights({}),
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_hash_depends_neither_on_the_order_of_tensors_nor_on_their_layout() -> None:
    a, b = torch.randn(2, 3), torch.randn(4)
    assert hash_weights({"a": a, "b": b}) == hash_weights({"b": b, "a": a.T.contiguous().T})


def test_the_hash_of_values_that_stores_keep_has_not_changed() -> None:
    """Computed by hand: SHA-256 of `settings`, then of each name and its little-endian float32 values."""
    assert hash_values({"w": torch.tensor([1.0, 2.0])}, "settings") == (
        "0c95c692b3e6704ff3c40b7595674bc722186fd765beee600527e63b1eff8a17"
    )
