"""Folders of videos as Lightning training and validation data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader

from vidtok_plugin.training.loading import ResumableDataModule, ResumableLoader, end_with_trainer, worker_context
from vidtok_plugin.video.clips import ClipDataset, find_sources

if TYPE_CHECKING:
    from vidtok_plugin.tokenizer.module import TokenizerRunConfig


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig:
    """Which clips to train and validate on.

    `train` and `validation` are folders, searched with their subfolders, or patterns such as `data/*/train`.
    Clips are all alike unless `train_weights` has a number for each entry of `train`, which the folders of a
    pattern share.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    train_weights: tuple[float, ...] | None = None
    clip_length: int = 17
    frame_interval: int = 1  # 1 takes neighbouring frames, 2 every other frame ...
    height: int = 256
    width: int = 256
    batch_size: int = 8  # of each rank
    num_workers: int = 0
    seed: int = 0
    clips_per_epoch: int | None = None  # as many as fit into the videos without overlap by default
    validation_every: int | None = None  # frames between the clips' starts; without overlap by default
    validation_clips: int | None = None  # at most, evenly spaced over all
    horizontal_flip: bool = False
    skip_short: bool = False  # leave out videos that are shorter than a clip
    skip_unreadable: bool = False  # leave out videos that cannot be read, if they are few
    open_videos: int = 32  # readers kept open in each worker
    cache_mb: int = 0  # decoded training videos in each worker's memory, in MiB: a great help for small videos

    def __post_init__(self) -> None:
        if isinstance(self.train, str) or isinstance(self.validation, str):
            raise ValueError("VideoDataConfig: train and validation must be lists of folders, got a string; use [...].")
        if not self.train:
            raise ValueError("VideoDataConfig: train must name at least one folder of videos, got none.")
        for field in ("clip_length", "frame_interval", "height", "width", "batch_size", "open_videos"):
            if getattr(self, field) < 1:
                raise ValueError(f"VideoDataConfig: {field} must be at least 1, got {getattr(self, field)}.")
        for field in ("num_workers", "seed", "cache_mb"):
            if getattr(self, field) < 0:
                raise ValueError(f"VideoDataConfig: {field} must be at least 0, got {getattr(self, field)}.")
        for field in ("clips_per_epoch", "validation_every", "validation_clips"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"VideoDataConfig: {field} must be at least 1 or null, got {getattr(self, field)}.")
        weights = self.train_weights
        if weights is not None and (len(weights) != len(self.train) or min(weights) <= 0):
            raise ValueError(
                "VideoDataConfig: train_weights must be one positive number for each of the"
                f" {len(self.train)} entries of train, got {list(weights)}."
            )


class VideoDataModule(ResumableDataModule):
    """Batches `(b, 3, t, h, w)`, float32 in [-1, 1], of random clips to train on and evenly spaced ones to
    validate on.

    A whole run's config serves as well as its data's. The order and the clips follow from the seed and the epoch
    alone. Training that resumes from a checkpoint goes on with the very next batch, in the middle of an epoch as at
    its end, whatever the number of workers.

    Example:
        >>> data = VideoDataModule(VideoDataConfig(train=("data/train",)))   # doctest: +SKIP
        >>> trainer.fit(module, data)   # doctest: +SKIP
    """

    def __init__(self, cfg: "VideoDataConfig | TokenizerRunConfig") -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, VideoDataConfig) else cfg.data
        self.train_clips: ClipDataset | None = None
        self.validation_clips: ClipDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds and probes the videos.

        Raises:
            FileNotFoundError: a folder that is missing or empty.
            ValueError: a file that is no video, or is too short for a clip.
        """
        cfg = self.cfg
        shape: dict[str, Any] = {
            "clip_length": cfg.clip_length,
            "frame_interval": cfg.frame_interval,
            "height": cfg.height,
            "width": cfg.width,
            "skip_short": cfg.skip_short,
            "skip_unreadable": cfg.skip_unreadable,
            "open_videos": cfg.open_videos,
        }
        if stage in (None, "fit") and self.train_clips is None:
            self.train_clips = ClipDataset.random(
                find_sources(cfg.train, cfg.train_weights),
                num_clips=cfg.clips_per_epoch,
                weighted=cfg.train_weights is not None,
                seed=cfg.seed,
                horizontal_flip=cfg.horizontal_flip,
                cache_mb=cfg.cache_mb,
                **shape,
            )
        if stage in (None, "fit", "validate") and cfg.validation and self.validation_clips is None:
            self.validation_clips = ClipDataset.every(
                find_sources(cfg.validation),
                every=cfg.validation_every,
                most_clips=cfg.validation_clips,
                **shape,
            )

    def train_dataloader(self) -> ResumableLoader:
        assert self.train_clips is not None, "setup() comes first"
        return self.resumable_loader(self.train_clips, self.cfg)

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        if self.validation_clips is None:
            return []
        return DataLoader(
            self.validation_clips,
            batch_size=self.cfg.batch_size,
            num_workers=self.cfg.num_workers,
            multiprocessing_context=worker_context(self.cfg.num_workers),
            worker_init_fn=end_with_trainer,
            shuffle=False,
        )
