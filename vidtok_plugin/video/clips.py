"""Clips of videos as a map-style dataset: random ones to train on, evenly spaced ones to validate on."""

import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtok_plugin.video.episodes import find_videos
from vidtok_plugin.video.reading import ReaderPool, count_frames, read_frames
from vidtok_plugin.video.resizing import resize_and_crop

logger = logging.getLogger(__name__)

MOST_SKIPPED = 0.1  # share of the videos that may be unreadable when those are skipped
MOST_DRAWS = 8  # clips in a row that may be unreadable then


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos that are drawn from with one weight, relative to the other sources' weights."""

    name: str
    videos: tuple[Path, ...]
    weight: float = 1.0


def find_sources(patterns: Sequence[str], weights: Sequence[float] | None = None) -> list[Source]:
    """The videos of folders, each of which may be a pattern such as `data/*/train` that names several.

    A pattern's weight is shared equally by the folders that it names.

    Raises:
        FileNotFoundError: a folder that is missing or has no videos.
        ValueError: weights that don't fit.
    """
    if isinstance(patterns, str):
        raise ValueError(f"find_sources: folders must be a list, got the string {patterns!r}; write [{patterns}].")
    if weights is not None and (len(weights) != len(patterns) or any(weight <= 0 for weight in weights)):
        raise ValueError(
            f"find_sources: weights must be one positive number for each of the {len(patterns)} folders,"
            f" got {list(weights)}."
        )
    sources = []
    for pattern, weight in zip(patterns, weights or [1.0] * len(patterns), strict=True):
        # A pattern without any match is kept as it is, so that the error is that of a missing folder.
        folders = sorted(path for path in glob.glob(pattern) if Path(path).is_dir()) or [pattern]
        sources += [
            Source(name=folder, videos=tuple(find_videos(folder)), weight=weight / len(folders)) for folder in folders
        ]
    return sources


@dataclass(frozen=True, kw_only=True)
class IndexedVideo:
    """A video that clips are taken from."""

    path: Path
    num_frames: int


class ClipDataset(Dataset[Tensor]):
    """Clips `(3, t, height, width)`, float32 in [-1, 1], of frames that are `frame_interval` apart.

    Make one with `ClipDataset.random` or `ClipDataset.every`. A key is `index` or `(epoch, index)`; a random
    clip follows from (seed, epoch, index) alone, so that neither workers nor their number, nor a resumption
    change it. Videos of another size are scaled until they just cover the size, and their middle is cut out;
    a video of the right size passes untouched.

    Up to `cache_mb` MiB of decoded videos, whole and at the clips' size, are kept in the memory of each
    worker: small videos that are read again and again then cost next to nothing. What doesn't fit is decoded
    clip by clip.
    """

    def __init__(
        self,
        videos: Sequence[IndexedVideo],
        *,
        clip_length: int,
        height: int,
        width: int,
        frame_interval: int = 1,
        starts: Sequence[tuple[int, int]] | None = None,
        num_clips: int | None = None,
        probabilities: np.ndarray | None = None,
        seed: int = 0,
        horizontal_flip: bool = False,
        skip_unreadable: bool = False,
        open_videos: int = 32,
        cache_mb: int = 0,
    ) -> None:
        """With `starts`, pairs (number of the video, first frame), those clips; else random ones."""
        self.videos = list(videos)
        self.clip_length, self.height, self.width = clip_length, height, width
        self.frame_interval, self.seed = frame_interval, seed
        self.horizontal_flip, self.skip_unreadable = horizontal_flip, skip_unreadable
        self.starts = None if starts is None else list(starts)
        self.num_clips = len(starts) if starts is not None else int(num_clips or 0)
        self.cumulative = None if probabilities is None else np.cumsum(probabilities)
        self.pool = ReaderPool(open_videos)
        self.cache_left = cache_mb * 2**20
        self.cache: dict[int, np.ndarray] = {}

    @classmethod
    def random(
        cls,
        sources: Sequence[Source],
        *,
        clip_length: int,
        height: int,
        width: int,
        frame_interval: int = 1,
        num_clips: int | None = None,
        weighted: bool = False,
        seed: int = 0,
        horizontal_flip: bool = False,
        skip_short: bool = False,
        skip_unreadable: bool = False,
        open_videos: int = 32,
        cache_mb: int = 0,
    ) -> "ClipDataset":
        """Random clips: all alike, or with `weighted` each source as often as its weight says.

        `num_clips` is the length of an epoch; as many as fit into the videos without overlap by default.

        Raises:
            ValueError: no video is long enough, or (without `skip_short`) one isn't.
        """
        span = _span(clip_length, frame_interval)
        videos: list[IndexedVideo] = []
        shares: list[np.ndarray] = []
        for source in sources:
            found = _index(source.videos, span, skip_short=skip_short, skip_unreadable=skip_unreadable)
            clips = np.array([video.num_frames - span + 1 for video in found], np.float64)
            shares.append(clips * (source.weight / clips.sum()) if weighted else clips)
            videos += found
        probabilities = np.concatenate(shares)
        return cls(
            videos,
            clip_length=clip_length,
            height=height,
            width=width,
            frame_interval=frame_interval,
            num_clips=sum(video.num_frames // span for video in videos) if num_clips is None else num_clips,
            probabilities=probabilities / probabilities.sum(),
            seed=seed,
            horizontal_flip=horizontal_flip,
            skip_unreadable=skip_unreadable,
            open_videos=open_videos,
            cache_mb=cache_mb,
        )

    @classmethod
    def every(
        cls,
        sources: Sequence[Source],
        *,
        clip_length: int,
        height: int,
        width: int,
        frame_interval: int = 1,
        every: int | None = None,
        most_clips: int | None = None,
        skip_short: bool = False,
        skip_unreadable: bool = False,
        open_videos: int = 32,
        cache_mb: int = 0,
    ) -> "ClipDataset":
        """The clips that start every `every` frames of each video, without overlap by default.

        Of more than `most_clips`, as many are taken, evenly spaced.
        """
        span = _span(clip_length, frame_interval)
        if every is not None and every < 1:
            raise ValueError(f"ClipDataset: every must be at least 1, got {every}.")
        paths = [path for source in sources for path in source.videos]
        videos = _index(paths, span, skip_short=skip_short, skip_unreadable=skip_unreadable)
        starts = [
            (number, start)
            for number, video in enumerate(videos)
            for start in range(0, video.num_frames - span + 1, every or span)
        ]
        if most_clips is not None and len(starts) > most_clips:
            starts = [starts[i] for i in np.linspace(0, len(starts) - 1, most_clips).round().astype(int)]
        return cls(
            videos,
            clip_length=clip_length,
            height=height,
            width=width,
            frame_interval=frame_interval,
            starts=starts,
            skip_unreadable=False,  # a clip that is asked for by place has no substitute
            open_videos=open_videos,
            cache_mb=cache_mb,
        )

    def __len__(self) -> int:
        return self.num_clips

    def __getstate__(self) -> dict[str, Any]:
        """Without the cache: a worker that is started by pickling fills its own."""
        freed = sum(frames.nbytes for frames in self.cache.values())
        return self.__dict__ | {"cache": {}, "cache_left": self.cache_left + freed}

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < self.num_clips:
            raise IndexError(f"ClipDataset has clips 0..{self.num_clips - 1}, got {index}.")
        if self.starts is not None:
            return self._clip(*self.starts[index], flip=False)
        assert self.cumulative is not None
        rng = np.random.default_rng([self.seed, epoch, index])
        for _ in range(MOST_DRAWS if self.skip_unreadable else 1):
            number = int(np.searchsorted(self.cumulative[:-1], rng.random(), side="right"))
            span = _span(self.clip_length, self.frame_interval)
            start = int(rng.integers(self.videos[number].num_frames - span + 1))
            flip = self.horizontal_flip and bool(rng.integers(2))
            try:
                return self._clip(number, start, flip=flip)
            except ValueError as error:
                if not self.skip_unreadable:
                    raise
                logger.warning("another clip is taken, since: %s", error)
        raise ValueError(f"ClipDataset: {MOST_DRAWS} clips in a row cannot be read; see the log for the causes.")

    def _clip(self, number: int, start: int, *, flip: bool) -> Tensor:
        stop = start + _span(self.clip_length, self.frame_interval)
        if number not in self.cache:
            size = self.videos[number].num_frames * self.height * self.width * 3
            if size <= self.cache_left:
                self.cache_left -= size
                self.cache[number] = self._decode_all(number)
        if number in self.cache:
            frames = self.cache[number][start : stop : self.frame_interval]
        else:
            frames = self._read(number, range(start, stop, self.frame_interval))
        frames = frames[:, :, ::-1] if flip else frames
        video = torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))  # (3, t, height, width)
        return video.float().div_(127.5).sub_(1.0)

    def _read(self, number: int, indices: Sequence[int]) -> np.ndarray:
        """Frames `(t, height, width, 3)` of a video, at the clips' size."""
        frames = read_frames(self.videos[number].path, indices, pool=self.pool)
        return resize_and_crop(frames, self.height, self.width)

    def _decode_all(self, number: int) -> np.ndarray:
        length = self.videos[number].num_frames
        frames = np.empty((length, self.height, self.width, 3), np.uint8)
        for start in range(0, length, 64):  # in blocks, since the video itself may be large
            frames[start : start + 64] = self._read(number, range(start, min(start + 64, length)))
        return frames


def _span(clip_length: int, frame_interval: int) -> int:
    """Frames of the video from a clip's first to its last."""
    if clip_length < 1 or frame_interval < 1:
        raise ValueError(
            f"ClipDataset: clip_length and frame_interval must be at least 1, got {clip_length} and {frame_interval}."
        )
    return (clip_length - 1) * frame_interval + 1


def _index(paths: Sequence[Path], span: int, *, skip_short: bool, skip_unreadable: bool) -> list[IndexedVideo]:
    """The videos that are long enough for a clip; the others are errors, or counted and logged if skipping
    them."""
    videos, short, unreadable = [], 0, 0
    for path in paths:
        try:
            num_frames = count_frames(path)
        except ValueError as error:
            if not skip_unreadable:
                raise
            unreadable += 1
            logger.warning("skipped: %s", error)
            continue
        if num_frames >= span:
            videos.append(IndexedVideo(path=path, num_frames=num_frames))
        elif skip_short:
            short += 1
            logger.debug("skipped: %s has %d frames, under %d", path, num_frames, span)
        else:
            raise ValueError(
                f"ClipDataset: {path} has {num_frames} frames, but a clip takes {span}; shorten clip_length"
                f" or"
                " frame_interval, remove the video, or set skip_short=true."
            )
    if short or unreadable:
        logger.warning("of %d videos, %d were too short and %d unreadable", len(paths), short, unreadable)
    if unreadable > MOST_SKIPPED * len(paths):
        raise ValueError(
            f"ClipDataset: {unreadable} of {len(paths)} videos cannot be read, more than {MOST_SKIPPED:.0%};"
            f" see the"
            " log for the causes."
        )
    if not videos:
        raise ValueError(
            f"ClipDataset: none of the {len(paths)} videos from {paths[0]} on has the {span} frames that a"
            f" clip takes;"
            " shorten clip_length or frame_interval."
        )
    return videos
