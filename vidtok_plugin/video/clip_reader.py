"""Reading clips at their size, in this process or in one that can be killed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidtok_plugin.video.reading import ReaderName, ReaderPool, count_frames, read_frames
from vidtok_plugin.video.resizing import cover, crop_out
from vidtok_plugin.video.sampling import IndexedVideo


class ClipReader:
    """Indexes videos and reads clips of them."""

    def __init__(self, *, reader: ReaderName = "auto", timeout: float | None = None, open_videos: int = 32) -> None:
        self.reader, self.timeout = reader, timeout
        self.pool = ReaderPool(open_videos)

    def index(self, path: str | os.PathLike[str], *, timed: bool) -> IndexedVideo:
        return IndexedVideo(path=Path(path), num_frames=count_frames(path))

    def frames(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int],
        height: int,
        width: int,
        place: tuple[float, float] | None = None,
        *,
        cut: bool = True,
    ) -> np.ndarray:
        covering = cover(read_frames(path, indices, pool=self.pool), height, width)
        return crop_out(covering, height, width, place) if cut else covering
