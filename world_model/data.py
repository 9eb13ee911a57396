"""Windows of a token store as Lightning training and validation data."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.store.metadata import StoreMetadata, read_metadata
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.training.loading import ResumableDataModule, ResumableLoader
from vidtok_plugin.training.workers import WorkerLoader
from vidtok_plugin.video.preparation import Preparation
from world_model.actions import ActionSpec, GroupedActions
from world_model.architecture import TokenSpec
from world_model.heads.outcomes import OutcomeTargets


@dataclass(frozen=True, kw_only=True)
class TokenDataConfig:
    """Which windows of a token store to train and validate on.

    A window is `window_steps` consecutive latent steps of one episode. Its first step is context only and is not
    scored. Training samples windows at every possible start. Validation windows overlap by one step, so every step
    except an episode's first is scored exactly once.
    """

    store: str
    train: str = "train"  # a split of the store
    validation: str = "validation"  # a split of the store
    window_steps: int = 8
    batch_size: int = 8  # per process
    validation_batch_size: int = 32
    validation_windows: int | None = None  # maximum, evenly spaced over all windows; None for all of them
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.window_steps < 2:
            raise ValueError(
                "TokenDataConfig: window_steps must be at least 2 (one step of context and one to predict), got "
                f"{self.window_steps}."
            )
        for name in ("batch_size", "validation_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"TokenDataConfig: {name} must be at least 1, got {getattr(self, name)}.")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"TokenDataConfig: {name} must be at least 0, got {getattr(self, name)}.")
        if self.validation_windows is not None and self.validation_windows < 1:
            raise ValueError(
                f"TokenDataConfig: validation_windows must be at least 1 or null, got {self.validation_windows}."
            )


class HasTokenData(Protocol):
    """A run config that says which tokens the run trains on."""

    @property
    def data(self) -> TokenDataConfig: ...


def token_spec(metadata: StoreMetadata) -> TokenSpec:
    """The kind and sizes of a store's tokens and actions, as a world model needs them."""
    space = metadata.action_space
    prepared = metadata.preparation
    return TokenSpec(
        codebook_size=metadata.codebook_size,
        patch_dim=metadata.patch_dim,
        height=metadata.height,
        width=metadata.width,
        temporal_factor=metadata.temporal_factor,
        fsq_levels=metadata.fsq_levels,
        preparation=None if prepared is None else Preparation.from_facts(prepared),
        actions=ActionSpec(kind=space["kind"], size=space["size"], space=space.get("space")) if space else ActionSpec(),
    )


def window_tokens(batch: TensorDict) -> Tensor:
    """The tokens of a batch of windows: codes (b, T, H, W) or patches (b, T, H, W, p)."""
    tokens = batch.get("codes", None)
    return batch["patches"] if tokens is None else tokens


def window_actions(batch: TensorDict) -> GroupedActions | None:
    """The actions of a batch of windows; None if the store has no actions."""
    values = batch.get("actions", None)
    return None if values is None else GroupedActions(values=values, known=batch["actions_known"])


def window_outcomes(batch: TensorDict) -> OutcomeTargets:
    """What is known of the outcomes of a batch of windows."""
    return OutcomeTargets(rewards=batch.get("rewards", None), terminated=batch.get("terminated", None))


def window_state(batch: TensorDict) -> Tensor | None:
    """The states (b, T, f, s) of a batch of windows, NaN where unknown; None if the store has no states."""
    return batch.get("state", None)


class WindowDataset(Dataset[TensorDict]):
    """Windows of `length` latent steps of a store's episodes, starting every `every` steps.

    A shorter episode gives one padded window, whose `valid` marks the steps that exist. With `partial`, the last window
    of every episode may be padded too. `__getitems__` takes indices or `(epoch, index)` pairs and returns one batched
    TensorDict.
    """

    def __init__(self, store: TokenStore, length: int, *, every: int = 1, partial: bool = False) -> None:
        self.store, self.length = store, length
        last = store.steps - (2 if partial else length)  # a window scores every step after its first
        counts = np.maximum(last // every, 0) + 1
        counts[store.steps < 2] = 0
        self.ends = np.cumsum(counts)
        self.every = every
        if self.ends[-1] == 0:
            raise ValueError(
                f"WindowDataset: {store.folder} has no episode of at least 2 latent steps; use longer videos."
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: int | tuple[int, int]) -> TensorDict:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Any]) -> TensorDict:
        indices = np.array([key[1] if isinstance(key, tuple) else key for key in keys])
        episodes = np.searchsorted(self.ends, indices, side="right")
        before = np.concatenate([[0], self.ends])[episodes]
        return self.store.windows(episodes, (indices - before) * self.every, self.length)


class TokenDataModule(ResumableDataModule):
    """Batches of windows, as the TensorDicts of `TokenStore.windows`.

    The order depends only on the seed and the epoch. Training resumed from a checkpoint continues with the next batch.
    `cfg` is a data config or a run config that has one.

    Example:
        data = TokenDataModule(TokenDataConfig(store="runs/demo/tokens"))
        trainer.fit(WorldModelModule(cfg), data)
    """

    def __init__(self, cfg: TokenDataConfig | HasTokenData) -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, TokenDataConfig) else cfg.data
        self.train_windows: WindowDataset | None = None
        self.validation_windows: WindowDataset | None = None

    @property
    def token_spec(self) -> TokenSpec:
        """The kind and sizes of the store's tokens and actions."""
        return token_spec(read_metadata(self.cfg.store))

    def setup(self, stage: str | None = None) -> None:
        """Open the store.

        Raises:
            FileNotFoundError: the store or one of its splits is missing.
            ValueError: no episode is long enough.
        """
        cfg = self.cfg
        if stage in (None, "fit") and self.train_windows is None:
            self.train_windows = WindowDataset(TokenStore(cfg.store, cfg.train), cfg.window_steps)
        if stage in (None, "fit", "validate") and self.validation_windows is None:
            store = TokenStore(cfg.store, cfg.validation)
            self.validation_windows = WindowDataset(store, cfg.window_steps, every=cfg.window_steps - 1, partial=True)

    def train_dataloader(self) -> ResumableLoader:
        """Random windows, the same for equal seeds and epochs."""
        assert self.train_windows is not None, "setup() comes first"
        return self.resumable_loader(self.train_windows, self.cfg, _already_batched)

    def val_dataloader(self) -> DataLoader[TensorDict]:
        """Every scored step of the validation split once."""
        assert self.validation_windows is not None, "setup() comes first"
        windows: Dataset[TensorDict] = self.validation_windows
        total, limit = len(self.validation_windows), self.cfg.validation_windows
        if limit is not None and limit < total:
            windows = Subset(windows, np.linspace(0, total - 1, limit).round().astype(int).tolist())
        return WorkerLoader(
            windows,
            batch_size=self.cfg.validation_batch_size,
            **self.loader_settings(self.cfg.num_workers),
            collate_fn=_already_batched,
        )


def _already_batched(batch: Any) -> Any:
    """The dataset's `__getitems__` returns whole batches."""
    return batch
