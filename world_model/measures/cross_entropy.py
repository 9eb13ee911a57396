"""Cross entropy of a world model and of its baselines on a held-out split."""

from dataclasses import dataclass

from torch.utils.data import DataLoader

from vidtok_plugin.store.reader import TokenStore
from world_model.data import WindowDataset
from world_model.measures.baselines import Baselines
from world_model.measures.teacher_forcing import teacher_forced
from world_model.model import WorldModel


@dataclass(frozen=True, kw_only=True)
class CrossEntropies:
    """Nats per token, over the same held-out tokens: all but each window's first step."""

    world_model: float
    unigram: float
    copy: float


def cross_entropies(
    model: WorldModel, train: TokenStore, held_out: TokenStore, *, window_steps: int, batch_size: int = 32
) -> CrossEntropies:
    """The cross entropies of the model and of the baselines, which are fitted on the training split.

    Raises:
        ValueError: the model's tokens are continuous.
    """
    sizes = model.factor_sizes
    if sizes is None:
        raise ValueError(
            "cross_entropies: the model's tokens must be discrete, got continuous ones; look at their flow loss."
        )
    windows = WindowDataset(held_out, window_steps, every=window_steps - 1, partial=True)
    batches = DataLoader(windows, batch_size, collate_fn=lambda batch: batch)
    result = teacher_forced(model, batches, Baselines.fit_store(train, sizes))
    assert result.unigram is not None and result.copy is not None
    return CrossEntropies(world_model=result.losses.mean, unigram=result.unigram.mean, copy=result.copy.mean)
