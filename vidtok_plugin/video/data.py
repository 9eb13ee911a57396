"""Clips of videos as Lightning training and validation data."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.training.loading import ResumableDataModule, ResumableLoader
from vidtok_plugin.training.workers import WorkerLoader
from vidtok_plugin.video.batch import Clip, VideoBatch, collate_clips
from vidtok_plugin.video.clips import ClipDataset, ClipSettings
from vidtok_plugin.video.reading import ReaderName
from vidtok_plugin.video.sources import find_sources
from vidtok_plugin.video.unreadable import UnreadableVideos


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig:
    """Which clips to train and validate on.

    Each entry of `train` and `validation` is a source that `open_videos` takes (a folder, searched with its subfolders,
    a video file, a LeRobot dataset, ...), a CSV list with a column `videos`, or a pattern of those such as
    `data/*/train`. All clips are equally likely unless `train_weights`
    has a weight for each entry of `train`, which is divided among the folders and lists of a pattern.
    """

    RENAMED: ClassVar[dict[str, str]] = {"most_unreadable": "max_unreadable_fraction"}

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    camera: str | None = None  # of LeRobot datasets; several, with commas between them, are side by side
    root: str | None = None  # folder that relative paths in CSV lists start at; by default the list's own
    train_weights: tuple[float, ...] | None = None
    clip_length: int = 17
    frame_interval: int = 1  # 1 for consecutive frames, 2 for every other frame, ...
    fps: float | None = None  # resample to this rate by the nearest frames in time; by default each video keeps its own
    validation_fps: float | None = None  # of validation clips; by default fps
    height: int = 256
    width: int = 256
    crop: Literal["center", "random"] = "center"  # of training clips whose video has another aspect ratio
    horizontal_flip: bool = False  # mirrors a random half of the training clips
    batch_size: int = 8  # per process
    num_workers: int = 0
    seed: int = 0
    clips_per_epoch: int | None = None  # by default as many as fit into the videos without overlap
    validation_every: int | None = None  # frames between the starts of clips; by default no overlap
    validation_clips: int | None = None  # maximum, evenly spaced over all clips; None for all of them
    skip_short: bool = False  # skip videos that are shorter than a clip
    max_unreadable_fraction: float = 0.0  # more unreadable videos stop the run; up to it, other clips replace theirs
    reader: ReaderName = "auto"  # auto: PyAV
    read_timeout: float | None = None  # seconds; a video that takes longer counts as unreadable
    open_videos: int = 32  # maximum in each worker
    cache_mb: int = 0  # MiB of decoded training videos in each worker; much faster for small videos

    def __post_init__(self) -> None:
        if isinstance(self.train, str) or isinstance(self.validation, str):
            raise ValueError(
                "VideoDataConfig: train and validation must be lists of folders, files, CSV lists or patterns, got a"
                " string; write it as [...]."
            )
        check_fields(self)
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
        for field in ("fps", "validation_fps", "read_timeout"):
            if getattr(self, field) is not None and not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"VideoDataConfig: {field} must be above 0 or null, got {getattr(self, field)}.")
        for field in ("fps", "validation_fps"):
            if getattr(self, field) is not None and self.frame_interval != 1:
                raise ValueError(
                    f"VideoDataConfig: {field}={getattr(self, field):g} and frame_interval={self.frame_interval}"
                    " exclude each other; leave one of them out."
                )
        if not 0 <= self.max_unreadable_fraction < 1:
            raise ValueError(
                "VideoDataConfig: max_unreadable_fraction must be from 0 up to but not including 1, got"
                f" {self.max_unreadable_fraction}; 0.01 allows one unreadable video in a hundred."
            )
        for field, choices in (("crop", ("center", "random")), ("reader", get_args(ReaderName))):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"VideoDataConfig: {field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}."
                )
        weights = self.train_weights
        if weights is not None and (len(weights) != len(self.train) or min(weights) <= 0):
            raise ValueError(
                "VideoDataConfig: train_weights must be one positive number for each of the"
                f" {len(self.train)} entries of train, got {list(weights)}."
            )


class HasVideoData(Protocol):
    """A run config that says which videos the run trains on."""

    @property
    def data(self) -> VideoDataConfig: ...


class ClipsWithOrigins(Dataset[Clip]):
    """A ClipDataset whose items are `Clip`s, with origins."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:
        return self.clips.clip(key)


class VideoDataModule(ResumableDataModule):
    """VideoBatches of random training clips and evenly spaced validation clips.

    `batch.video` is `(b, 3, t, h, w)`, float32 in [-1, 1], converted from uint8 on the batch's device on first access;
    `batch.origins` describes the file and frames of each clip. `cfg` is a data config or a run config that has one.

    Clips and their order depend only on the seed and the epoch. Training resumed from a checkpoint continues with the
    next batch, also within an epoch and with another number of workers.

    `unreadable` collects the unreadable videos of all workers: each is logged once per run, and more than
    `max_unreadable_fraction` stop the run.

    Example:
        >>> data = VideoDataModule(VideoDataConfig(train=("data/train",)))   # doctest: +SKIP
        >>> trainer.fit(module, data)   # doctest: +SKIP
    """

    def __init__(self, cfg: VideoDataConfig | HasVideoData) -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, VideoDataConfig) else cfg.data
        self.unreadable = UnreadableVideos(self.cfg.max_unreadable_fraction)
        self.train_clips: ClipDataset | None = None
        self.validation_clips: ClipDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds and probes the videos.

        Raises:
            FileNotFoundError: a folder, file or CSV list is missing or has no videos.
            ValueError: a CSV list is invalid, too many files are unreadable, or a video is shorter than a clip.
        """
        cfg = self.cfg
        training = stage in (None, "fit") and self.train_clips is None
        validating = stage in (None, "fit", "validate") and self.validation_clips is None and len(cfg.validation) > 0
        to_train = find_sources(cfg.train, cfg.train_weights, root=cfg.root, camera=cfg.camera) if training else []
        to_validate = find_sources(cfg.validation, root=cfg.root, camera=cfg.camera) if validating else []
        for source in (*to_train, *to_validate):  # before any is opened: the limit is a fraction of all
            self.unreadable.expect(source.videos)
        settings: ClipSettings = {
            "clip_length": cfg.clip_length,
            "height": cfg.height,
            "width": cfg.width,
            "frame_interval": cfg.frame_interval,
            "seed": cfg.seed,
            "reader": cfg.reader,
            "read_timeout": cfg.read_timeout,
            "open_videos": cfg.open_videos,
            "unreadable": self.unreadable,
        }
        if training:
            random: ClipSettings = {
                **settings,
                "fps": cfg.fps,
                "crop": cfg.crop,
                "horizontal_flip": cfg.horizontal_flip,
                "cache_mb": cfg.cache_mb,
            }
            self.train_clips = ClipDataset.random(
                to_train,
                num_clips=cfg.clips_per_epoch,
                weighted=cfg.train_weights is not None,
                skip_short=cfg.skip_short,
                **random,
            )
        if validating:
            fixed: ClipSettings = {**settings, "fps": cfg.fps if cfg.validation_fps is None else cfg.validation_fps}
            self.validation_clips = ClipDataset.every(
                to_validate,
                every=cfg.validation_every,
                max_clips=cfg.validation_clips,
                skip_short=cfg.skip_short,
                **fixed,
            )

    def train_dataloader(self) -> ResumableLoader:
        """Batches of random clips, the same for equal seeds and epochs."""
        assert self.train_clips is not None, "setup() comes first"
        self._log_indexed()
        return self.resumable_loader(ClipsWithOrigins(self.train_clips), self.cfg, collate_clips)

    def val_dataloader(self) -> DataLoader[Clip] | list[DataLoader[Clip]]:
        """The clips of `data.validation`, or an empty list without them."""
        if self.validation_clips is None:
            return []
        self._log_indexed()
        return WorkerLoader(
            ClipsWithOrigins(self.validation_clips),
            batch_size=self.cfg.batch_size,
            **self.loader_settings(self.cfg.num_workers),
            collate_fn=collate_clips,
            shuffle=False,
        )

    def _log_indexed(self) -> None:
        """Logs the unreadable videos that setup found. Only after a checkpoint was loaded, whose state has those logged
        before, and only in one process, since all find the same."""
        first = self.trainer is None or self.trainer.is_global_zero
        self.unreadable.log(logging.WARNING if first else logging.DEBUG)

    def on_before_batch_transfer(self, batch: VideoBatch | Tensor, dataloader_idx: int) -> VideoBatch | Tensor:
        """Collects the unreadable videos that the batch's worker found.

        Raises:
            UnreadableVideoError: there are more than the budget allows.
        """
        if isinstance(batch, VideoBatch):
            self.unreadable.add(batch.unreadable)
            self.unreadable.log()
        return batch

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"unreadable": self.unreadable.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "unreadable" in state_dict:
            self.unreadable.load_state_dict(state_dict["unreadable"])
