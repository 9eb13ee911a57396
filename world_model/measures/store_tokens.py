"""A store's tokens for statistics: all of them, or those of evenly spaced episodes."""

import logging
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from vidtok_plugin.store.reader import TokenStore
from world_model.data import window_tokens

logger = logging.getLogger(__name__)

ENOUGH_TOKENS = 4_000_000  # for frequencies; more would take long and change little


def episode_tokens(store: TokenStore, max_tokens: int = ENOUGH_TOKENS) -> Iterator[Tensor]:
    """Yield each episode's tokens (N, H, W[, d]); evenly spaced episodes if the store has more than `max_tokens`.

    Example:
        store = TokenStore("runs/demo/tokens", "train")
        counts = sum(codes.flatten().bincount(minlength=1000) for codes in episode_tokens(store))
    """
    fraction = min(1.0, max_tokens / store.num_tokens)
    chosen = np.unique(np.linspace(0, len(store) - 1, max(1, round(fraction * len(store)))).round().astype(int))
    if len(chosen) < len(store):
        logger.info(
            "%s: using %d of its %d episodes, evenly spaced, for statistics.", store.folder, len(chosen), len(store)
        )
    for index in chosen.tolist():
        yield window_tokens(store.window(index, 0, store.episodes[index].steps))
