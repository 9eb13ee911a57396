"""Clips of videos as a map-style dataset: random for training, evenly spaced for validation."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtok_plugin.video.batch import Clip
from vidtok_plugin.video.clip_reader import ClipReader
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.reading import ReaderName
from vidtok_plugin.video.resizing import crop_out
from vidtok_plugin.video.sampling import ClipFrames, IndexedVideo
from vidtok_plugin.video.sources import Source
from vidtok_plugin.video.unreadable import UnreadableVideoError, UnreadableVideos

logger = logging.getLogger(__name__)

MAX_DRAWS = 100  # consecutive unreadable clips before giving up
PLACES = 10_000  # resolution of random crop positions along each axis

Draw = tuple[int, int, bool, tuple[float, float] | None]  # index of the video, first frame, mirrored, crop position


class ClipSettings(TypedDict, total=False):
    """The keywords of ClipDataset, which documents them."""

    clip_length: int
    height: int
    width: int
    frame_interval: int
    fps: float | None
    crop: Literal["center", "random"]
    horizontal_flip: bool
    seed: int
    reader: ReaderName
    read_timeout: float | None
    open_videos: int
    cache_mb: int
    unreadable: UnreadableVideos | None


class ClipDataset(Dataset[Tensor]):
    """Clips `(3, t, height, width)`, float32 in [-1, 1], with frames `frame_interval` apart or resampled to `fps`.

    Create one with `ClipDataset.random` or `ClipDataset.every`. A key is `index` or `(epoch, index)`. A random clip
    depends only on (seed, epoch, index), not on workers or resumption. `clip(key)` also returns the clip's origin.
    Videos of another size are resized to cover `height` x `width` and cropped: at the center, or with `crop="random"`
    anywhere. A video of that size is left unchanged.

    The first unreadable video is an error, unless the budget of `unreadable` allows some. Then another clip, also
    determined by (seed, epoch, index), replaces an unreadable one. Every read is tried again, so that earlier failures,
    perhaps in another worker, do not change the result.

    With `read_timeout` in seconds, a separate process reads and is terminated if a clip takes longer.

    Each worker caches up to `cache_mb` MiB of decoded videos, complete and at the clips' size, so that clips of small
    videos cost almost nothing after the first. Videos that don't fit are decoded clip by clip.
    """

    def __init__(
        self,
        *,
        clip_length: int,
        height: int,
        width: int,
        frame_interval: int = 1,
        fps: float | None = None,
        crop: Literal["center", "random"] = "center",
        horizontal_flip: bool = False,
        seed: int = 0,
        reader: ReaderName = "auto",
        read_timeout: float | None = None,
        open_videos: int = 32,
        cache_mb: int = 0,
        unreadable: UnreadableVideos | None = None,
    ) -> None:
        self.frames = ClipFrames(clip_length=clip_length, frame_interval=frame_interval, fps=fps)
        self.height, self.width, self.crop = height, width, crop
        self.horizontal_flip, self.seed = horizontal_flip, seed
        self.reader = ClipReader(reader=reader, timeout=read_timeout, open_videos=open_videos)
        self.unreadable = UnreadableVideos() if unreadable is None else unreadable
        self.cache_left = cache_mb * 2**20
        self.cache: dict[int, np.ndarray] = {}
        self.not_cached: set[int] = set()
        self.videos: list[IndexedVideo] = []
        self.num_clips = 0
        self.starts: list[tuple[int, int]] | None = None  # video and first frame of each fixed clip
        self.cumulative: np.ndarray | None = None  # cumulative probabilities of the videos, for random clips

    @classmethod
    def random(
        cls,
        sources: Sequence[Source],
        *,
        num_clips: int | None = None,
        weighted: bool = False,
        skip_short: bool = False,
        **settings: Unpack[ClipSettings],
    ) -> "ClipDataset":
        """Random clips, all equally likely, or with `weighted` in proportion to the weights of the sources.

        `num_clips` is the length of an epoch; by default as many as fit into the videos without overlap.

        Raises:
            ValueError: no video is long enough, or without `skip_short`, any is too short.
        """
        clips = cls(**settings)
        clips.unreadable.expect(path for source in sources for path in source.videos)
        unnormalized: list[np.ndarray] = []
        for source in sources:
            found = clips._index(source.videos, skip_short=skip_short)
            starts = np.array([clips.frames.num_starts(video) for video in found], np.float64)
            if weighted and not found:
                raise ValueError(
                    f"ClipDataset: source {source.name} has no usable video, but weight {source.weight:g};"
                    " remove it from the sources."
                )
            unnormalized.append(starts * (source.weight / starts.sum()) if weighted else starts)
            clips.videos += found
        clips._check_not_empty(sources)
        probabilities = np.concatenate(unnormalized)
        clips.cumulative = np.cumsum(probabilities / probabilities.sum())
        if num_clips is None:
            num_clips = sum(len(clips.frames.starts(video)) for video in clips.videos)
        clips.num_clips = num_clips
        return clips

    @classmethod
    def every(
        cls,
        sources: Sequence[Source],
        *,
        every: int | None = None,
        max_clips: int | None = None,
        skip_short: bool = False,
        **settings: Unpack[ClipSettings],
    ) -> "ClipDataset":
        """Fixed clips that start every `every` frames of each video, by default without overlap.

        If there are more than `max_clips`, that many are selected, evenly spaced. Clips are center-cropped and not
        mirrored.

        Raises:
            ValueError: no video is long enough, or without `skip_short`, any is too short.
        """
        if every is not None and every < 1:
            raise ValueError(f"ClipDataset: every must be at least 1, got {every}.")
        clips = cls(**settings)
        paths = [path for source in sources for path in source.videos]
        clips.unreadable.expect(paths)
        clips.videos = clips._index(paths, skip_short=skip_short)
        clips._check_not_empty(sources)
        starts = [
            (number, start) for number, video in enumerate(clips.videos) for start in clips.frames.starts(video, every)
        ]
        if max_clips is not None and len(starts) > max_clips:
            starts = [starts[i] for i in np.linspace(0, len(starts) - 1, max_clips).round().astype(int)]
        clips.starts, clips.num_clips = starts, len(starts)
        return clips

    def __len__(self) -> int:
        return self.num_clips

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the cache; each worker fills its own."""
        freed = sum(frames.nbytes for frames in self.cache.values())
        return self.__dict__ | {"cache": {}, "not_cached": set(), "cache_left": self.cache_left + freed}

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        clip = self.clip(key)
        self.unreadable.log()
        return clip.video

    def clip(self, key: int | tuple[int, int]) -> Clip:
        """The clip of a key, with its origin and the unreadable videos that it was drawn in place of.

        Raises:
            UnreadableVideoError: more videos are unreadable than the budget allows.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < self.num_clips:
            raise IndexError(f"ClipDataset has clips 0..{self.num_clips - 1}, got {index}.")
        met: dict[str, str] = {}
        for draw in self._draws(epoch, index):
            path = str(self.videos[draw[0]].episode)
            try:
                frames, origin = self._read(*draw)
            except (UnreadableVideoError, OSError) as error:
                met[path] = str(error)
                self.unreadable.add(met)
            else:
                return Clip(frames=frames, origin=origin, unreadable=met)
        raise UnreadableVideoError(
            f"ClipDataset: {MAX_DRAWS} consecutive clips cannot be read, the last because: {met[path]}"
        )

    def _draws(self, epoch: int, index: int) -> Iterator[Draw]:
        """The clips to try for a key until one is readable."""
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.starts is not None:
            yield *self.starts[index], False, None
            for other in rng.integers(len(self.starts), size=MAX_DRAWS - 1).tolist():
                yield *self.starts[other], False, None
            return
        assert self.cumulative is not None
        for _ in range(MAX_DRAWS):
            number = int(np.searchsorted(self.cumulative[:-1], rng.random(), side="right"))
            start = int(rng.integers(self.frames.num_starts(self.videos[number])))
            mirrored = self.horizontal_flip and bool(rng.integers(2))
            place = None
            if self.crop == "random":
                down, right = rng.integers(PLACES, size=2).tolist()
                place = (down / PLACES, right / PLACES)
            yield number, start, mirrored, place

    def _read(self, number: int, start: int, mirrored: bool, place: tuple[float, float] | None) -> tuple[Tensor, str]:
        """The frames (t, height, width, 3) of a clip, and its origin."""
        episode = self.videos[number].episode
        indices = self.frames.indices(self.videos[number], start)
        if (whole := self._cached(number)) is not None:
            frames = crop_out(whole[list(indices)], self.height, self.width, place)
        else:
            frames = self.reader.frames(episode, indices, self.height, self.width, place)
        if mirrored:
            frames = np.ascontiguousarray(frames[:, :, ::-1])
        which = f"{indices[0]}..{indices[-1]}" if isinstance(indices, range) else " ".join(map(str, indices))
        step = f" every {self.frames.frame_interval}" if self.frames.frame_interval > 1 else ""
        crop = "center" if place is None else f"{place[0]:g} {place[1]:g}"
        origin = f"{episode}, frames {which}{step}, crop {crop}" + (", mirrored" if mirrored else "")
        return torch.from_numpy(frames), origin

    def _cached(self, number: int) -> np.ndarray | None:
        """All frames of a video, at a size that covers the clips, if they fit into the cache and are readable."""
        if self.cache_left > 0 and number not in self.cache and number not in self.not_cached:
            try:
                whole = self._decode_all(number)
            except (UnreadableVideoError, OSError):
                whole = None  # some clips of it may still be readable
            if whole is None:
                self.not_cached.add(number)
            else:
                self.cache[number] = whole
                self.cache_left -= whole.nbytes
        return self.cache.get(number)

    def _decode_all(self, number: int) -> np.ndarray | None:
        video, cut = self.videos[number], self.crop == "center"
        frames: np.ndarray | None = None
        for start in range(0, video.num_frames, 64):  # in blocks, since the original frames may be large
            indices = range(start, min(start + 64, video.num_frames))
            block = self.reader.frames(video.episode, indices, self.height, self.width, cut=cut)
            if frames is None:
                frames = np.empty((video.num_frames, *block.shape[1:]), np.uint8)  # takes memory only when filled
                if frames.nbytes > self.cache_left:
                    return None
            frames[start : start + 64] = block
        return frames

    def _index(self, paths: Sequence[Path | Episode], *, skip_short: bool) -> list[IndexedVideo]:
        """The videos that are long enough for a clip; others are errors, or counted and logged if skipped."""
        videos: list[IndexedVideo] = []
        short = slow = unreadable = 0
        for path in paths:
            try:
                video = self.reader.index(path, timed=self.frames.fps is not None)
            except (UnreadableVideoError, OSError) as error:
                unreadable += 1
                self.unreadable.add({str(path): str(error)})
                continue
            if self.frames.num_starts(video):
                videos.append(video)
                slow += self.frames.fps is not None and self.frames.fps > 1.01 * video.mean_rate
            elif skip_short:
                short += 1
                logger.debug(
                    "skipped: %s has %d frames, but a clip needs %s", path, video.num_frames, self.frames.needs
                )
            else:
                raise ValueError(
                    f"ClipDataset: {path} has {video.num_frames} frames, but a clip needs {self.frames.needs}; reduce"
                    " clip_length or frame_interval, raise fps, remove the video, or set skip_short=true."
                )
        if short or unreadable:
            logger.warning("of %d videos, %d are too short and %d unreadable", len(paths), short, unreadable)
        if slow:
            logger.warning(
                "%d of %d videos are slower than %g fps, so their frames repeat", slow, len(paths), self.frames.fps
            )
        return videos

    def _check_not_empty(self, sources: Sequence[Source]) -> None:
        if not self.videos:
            paths = [path for source in sources for path in source.videos]
            raise ValueError(
                f"ClipDataset: none of the {len(paths)} videos from {paths[0]} on is readable and has the"
                f" {self.frames.needs} that a clip needs; reduce clip_length or frame_interval, or raise fps."
            )
