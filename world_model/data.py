"""Windows of a token store as Lightning training and validation data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from vidtok_plugin.store.reader import StoreMetadata, TokenStore, read_metadata
from vidtok_plugin.training.loading import ResumableDataModule, ResumableLoader
from world_model.actions import ActionSpec, GroupedActions
from world_model.architecture import TokenSpec

if TYPE_CHECKING:
    from world_model.training.module import WorldModelRunConfig


@dataclass(frozen=True, kw_only=True)
class TokenDataConfig:
    """Which windows of a store to train and validate on.

    A window is `window_steps` latent steps of one episode, beginning anywhere; its first step is context
    alone. In training every beginning is a sample; in validation windows overlap by one step, so that every
    step but an episode's first is scored once.
    """

    store: str
    train: str = "train"  # splits of the store
    validation: str = "validation"
    window_steps: int = 8
    batch_size: int = 8  # of each rank
    validation_batch_size: int = 32
    validation_windows: int | None = None  # at most, evenly spaced over all
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window_steps < 2:
            raise ValueError(
                "TokenDataConfig: window_steps must be at least 2 (a step of context, a step to learn), got "
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


def token_spec(metadata: StoreMetadata) -> TokenSpec:
    """What a store's tokens and actions are, for the world model that learns them."""
    space = metadata.action_space
    return TokenSpec(
        codebook_size=metadata.codebook_size,
        patch_dim=metadata.patch_dim,
        height=metadata.height,
        width=metadata.width,
        temporal_factor=metadata.temporal_factor,
        fsq_levels=metadata.fsq_levels,
        actions=ActionSpec(kind=space["kind"], size=space["size"]) if space else ActionSpec(),
    )


def window_tokens(batch: TensorDict) -> Tensor:
    """The tokens of a batch of windows: codes (b, T, H, W), or patches (b, T, H, W, p)."""
    tokens = batch.get("codes", None)
    return batch["patches"] if tokens is None else tokens


def window_actions(batch: TensorDict) -> GroupedActions | None:
    """The actions of a batch of windows, None if the videos had none."""
    values = batch.get("actions", None)
    return None if values is None else GroupedActions(values=values, known=batch["actions_known"])


class WindowDataset(Dataset[TensorDict]):
    """Windows of `length` steps of a store's episodes, their beginnings `every` steps apart.

    An episode that is shorter gives one window, whose `valid` ends with it; so do last windows if `partial`.
    Items are batches: a list of indices, or of `(epoch, index)`, gives one TensorDict.
    """

    def __init__(self, store: TokenStore, length: int, *, every: int = 1, partial: bool = False) -> None:
        self.store, self.length = store, length
        last = store.steps - (2 if partial else length)  # a window scores the steps after its first
        counts = np.maximum(last // every, 0) + 1
        counts[store.steps < 2] = 0
        self.ends = np.cumsum(counts)
        self.every = every
        if self.ends[-1] == 0:
            raise ValueError(f"WindowDataset: {store.folder} has no episode of at least 2 latent steps to learn from.")

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
    """Batches of windows, TensorDicts as `TokenStore.windows` gives them.

    The order follows from the seed and the epoch alone. Training that resumes from a checkpoint goes on with
    the very next batch. A whole run's config serves as well as its data's.

    Example:
        data = TokenDataModule(TokenDataConfig(store="runs/demo/tokens"))
        trainer.fit(WorldModelModule(cfg), data)
    """

    def __init__(self, cfg: "TokenDataConfig | WorldModelRunConfig") -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, TokenDataConfig) else cfg.data
        self.train_windows: WindowDataset | None = None
        self.validation_windows: WindowDataset | None = None

    @property
    def token_spec(self) -> TokenSpec:
        """What the store's tokens and actions are."""
        return token_spec(read_metadata(self.cfg.store))

    def setup(self, stage: str | None = None) -> None:
        """Opens the store.

        Raises:
            FileNotFoundError: there is no store, or it lacks a split.
            ValueError: no episode is long enough.
        """
        cfg = self.cfg
        if stage in (None, "fit") and self.train_windows is None:
            self.train_windows = WindowDataset(TokenStore(cfg.store, cfg.train), cfg.window_steps)
        if stage in (None, "fit", "validate") and self.validation_windows is None:
            store = TokenStore(cfg.store, cfg.validation)
            self.validation_windows = WindowDataset(store, cfg.window_steps, every=cfg.window_steps - 1, partial=True)

    def train_dataloader(self) -> ResumableLoader:
        assert self.train_windows is not None, "setup() comes first"
        return self.resumable_loader(self.train_windows, self.cfg, _whole)

    def val_dataloader(self) -> DataLoader[TensorDict]:
        assert self.validation_windows is not None, "setup() comes first"
        windows: Dataset[TensorDict] = self.validation_windows
        total, most = len(self.validation_windows), self.cfg.validation_windows
        if most is not None and most < total:
            windows = Subset(windows, np.linspace(0, total - 1, most).round().astype(int).tolist())
        return DataLoader(
            windows,
            batch_size=self.cfg.validation_batch_size,
            **self.loader_settings(self.cfg.num_workers),
            collate_fn=_whole,
        )


def _whole(batch: Any) -> Any:
    """Batches come whole from the dataset."""
    return batch
