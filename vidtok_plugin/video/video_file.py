"""Episodes without actions: a video file, a folder of PNG frames, and the frames of another episode."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.video.episode import Episode, EpisodeMethods, OfEpisode, check_frames, relative_name
from vidtok_plugin.video.episode_meta import check_fps, read_meta
from vidtok_plugin.video.pyav_reader import Fit
from vidtok_plugin.video.reading import (
    ReaderName,
    ReaderPool,
    count_frames,
    listed_times,
    probe,
    read_frames,
    read_in_order,
)
from vidtok_plugin.video.unreadable import UnreadableVideoError

PNG = ".png"


class WithoutActions(EpisodeMethods):
    """What frames alone do not have."""

    actions: np.ndarray | None = None
    state: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: bool | None = None
    task: str | None = None

    @property
    def action_space(self) -> Mapping[str, Any]:
        return {}

    def digest_without_state(self: Episode) -> str:
        return self.frames_digest()


@dataclass(frozen=True, kw_only=True)
class VideoFile(WithoutActions):
    """A video file. Opening is left to the first use, which raises the errors of `probe`."""

    path: Path
    name: str
    reader: ReaderName = "auto"

    @classmethod
    def at(cls, path: Path, reader: ReaderName = "auto") -> "VideoFile":
        """The video at a path, named by its file."""
        return cls(path=path, name=path.name, reader=reader)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def num_frames(self) -> int:
        return count_frames(self.path, reader=self.reader)

    @property
    def fps(self) -> float | None:
        return probe(self.path, reader=self.reader).fps

    @property
    def size(self) -> tuple[int, int]:
        info = probe(self.path, reader=self.reader)
        return info.height, info.width

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        return read_frames(self.path, frames, fit=fit, pool=pool, reader=self.reader)

    def blocks(self, length: int) -> Iterator[np.ndarray]:
        return read_in_order(self.path, length, reader=self.reader)

    def times(self) -> np.ndarray:
        return listed_times(self.path, reader=self.reader)

    def frame_rate(self) -> float:
        return round(probe(self.path, reader=self.reader).fps, 3)

    def frames_digest(self) -> str:
        return hash_files(self.path)

    def name_from(self, root: Path | None) -> str:
        return relative_name(self.path, root)


@dataclass(frozen=True, kw_only=True, eq=False)
class PngFolder(WithoutActions):
    """A folder of PNG frames, in the order of the numbers in their names: `2.png` comes before `10.png`.

    Its rate is `fps` in a JSON beside the folder: `clip.json` for `clip/`.
    """

    path: Path
    name: str

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The frames."""
        return tuple(sorted(png_files(self.path), key=lambda path: _by_number(path.name)))

    @property
    def num_frames(self) -> int:
        return len(self.files)

    @property
    def json(self) -> Path:
        """The file that may state its rate."""
        return self.path.resolve().with_name(f"{self.path.resolve().name}.json")

    @cached_property
    def fps(self) -> float | None:
        if not self.json.is_file():
            return None
        meta = read_meta(self.json)
        check_fps(self.json, meta)
        return float(meta["fps"]) if "fps" in meta else None

    def frame_rate(self) -> float:
        if self.fps is None:
            raise ValueError(
                f'Frames {self}: their rate must be in {self.json}; write {{"fps": 30}} there, for example.'
            )
        return self.fps

    @cached_property
    def size(self) -> tuple[int, int]:
        height, width = self._picture(self.files[0]).shape[:2]
        return height, width

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        check_frames(self, frames, self.num_frames)
        pictures: dict[int, np.ndarray] = {}
        for index in sorted(set(frames)):
            picture = self._picture(self.files[index])
            if picture.shape[:2] != self.size:
                raise UnreadableVideoError(
                    f"Frames {self}: all must be {self.size[0]}x{self.size[1]} like the first, got "
                    f"{picture.shape[0]}x{picture.shape[1]} in {self.files[index].name}; remove or resize it."
                )
            pictures[index] = picture if fit is None else fit(picture[None])[0]
        return np.stack([pictures[index] for index in frames])

    def _picture(self, path: Path) -> np.ndarray:
        try:
            # fspath: Pillow 10 would take the name of a path at a URL, not its local copy.
            with Image.open(os.fspath(path), formats=("PNG",)) as image:
                if image.mode.startswith("I"):  # gray of 16 bits, which Pillow would clip
                    gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                    return gray[..., None].repeat(3, axis=2)
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableVideoError(f"Frame {path} cannot be read ({error}); remove or replace it.") from None

    def name_from(self, root: Path | None) -> str:
        return self.name if root is None or self.path == root else relative_name(self.path, root)

    def frames_digest(self) -> str:
        names = "/".join(path.name for path in self.files)
        return hashlib.sha256(f"{names} {hash_files(*self.files)}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class FramesOnly(OfEpisode, WithoutActions):
    """The frames of an episode, without what came with them."""

    episode: Episode

    @property
    def num_frames(self) -> int:
        return self.episode.num_frames

    @property
    def fps(self) -> float | None:
        return self.episode.fps

    @property
    def size(self) -> tuple[int, int]:
        return self.episode.size

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        return self.episode.read(frames, fit=fit, pool=pool)

    def frame_rate(self) -> float:
        return self.episode.frame_rate()

    def frames_digest(self) -> str:
        return self.episode.frames_digest()

    def name_from(self, root: Path | None) -> str:
        return self.episode.name_from(root)


def as_episode(video: Episode | Path, reader: ReaderName = "auto") -> Episode:
    """An episode as it is; a path is the video file there, without actions."""
    return VideoFile.at(video, reader) if isinstance(video, Path) else video


def png_files(folder: Path) -> list[Path]:
    """The PNG files in a folder, not in its subfolders."""
    return [path for path in folder.iterdir() if path.suffix.lower() == PNG and not path.name.startswith(".")]


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key by which names are sorted with the numbers in them as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
