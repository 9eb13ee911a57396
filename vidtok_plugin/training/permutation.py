"""A random permutation computed by position: an epoch's order without a list of it.

A Feistel network permutes the numbers of some bits, at most twice as many as needed; one that lands beyond the end is
permuted again until it does not (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

from collections.abc import Sequence

import numpy as np

ROUNDS = 8  # four are indistinguishable from random for a good mixing function; small sizes need more


def permuted(positions: Sequence[int] | np.ndarray, size: int, seed: Sequence[int]) -> np.ndarray:
    """The images (n,) int64 of `positions` (n,) under a permutation of 0 .. size - 1 that `seed` determines.

    Time and memory are proportional to n, not to `size`.

    Example:
        >>> sorted(permuted(range(10), 10, seed=[0]).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    bits = max(2, (size - 1).bit_length())
    images = _feistel(np.asarray(positions, np.uint64), bits, keys)
    beyond = np.flatnonzero(images >= size)
    while len(beyond):
        images[beyond] = _feistel(images[beyond], bits, keys)
        beyond = beyond[images[beyond] >= size]
    return images.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of so many bits: each round changes one half by a function of the other."""
    low_bits = bits // 2
    low_mask, high_mask = np.uint64(2**low_bits - 1), np.uint64(2 ** (bits - low_bits) - 1)
    low, high = x & low_mask, x >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mix(high + key) & low_mask)
        else:
            high = high ^ (_mix(low + key) & high_mask)
    return (high << np.uint64(low_bits)) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the result depends on every bit of x (n,) uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
