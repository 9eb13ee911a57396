"""Processor time by which each reader opens a file, reads frames in order, clips in order and frames at random.

    python benchmarks/video_readers.py [--rounds 3] [--frames 120] [--folder runs/benchmarks/video_loading]

The files are those of `video_loading.py`, which it makes if there are none: episodes of 64x64, natural videos of
256x256, and of 640x272 and 1280x720. Each reader decodes in one thread and gives frames as they are, without resizing.
Opening is that of a file that was never listed; frames in order include opening one that was. Figures are processor
time, which other load affects less than time.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from harness import FOLDER, Row, in_turns, make_parser, report
from video_loading import demo_videos, larger_videos, natural_videos

from vidtok_plugin.video.reading import OpenVideo, ReaderName, open_video

CLIP = 17  # frames
FILES = 2  # of each kind


def opening(path: Path, reader: ReaderName) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VIDTOK_CACHE"] = folder  # of the index of files that were listed
        open_video(path, reader).close()


def in_order(path: Path, frames: int, reader: ReaderName) -> None:
    opened = open_video(path, reader)
    for _ in islice(opened.in_order(), frames):
        pass
    opened.close()


def each(opened: OpenVideo, reads: Sequence[Sequence[int]]) -> None:
    for indices in reads:
        opened.read(indices)


def rows_of(videos: str, paths: Sequence[Path], frames: int, rounds: int) -> list[Row]:
    """Milliseconds of each reader, in turns."""
    rng, rows = np.random.default_rng(0), list[Row]()
    readers = [reader for reader in get_args(ReaderName) if reader != "auto"]
    for path in paths:
        opened = {reader: open_video(path, reader) for reader in readers}
        length = opened["pyav"].num_frames
        clips = [
            range(start, start + CLIP) for start in rng.integers(0, length - CLIP, max(1, frames // CLIP)).tolist()
        ]
        single = [[index] for index in rng.integers(0, length, max(1, frames // 4)).tolist()]
        works: dict[str, tuple[int, Callable[[ReaderName], None]]] = {
            "open": (1, partial(opening, path)),
            "a frame in order": (min(frames, length), partial(in_order, path, frames)),
            f"a clip of {CLIP}": (len(clips), lambda reader, o=opened, c=clips: each(o[reader], c)),  # type: ignore[misc]
            "a random frame": (len(single), lambda reader, o=opened, c=single: each(o[reader], c)),  # type: ignore[misc]
        }
        milliseconds: dict[str, dict[str, float]] = {reader: {} for reader in readers}
        for name, (number, work) in works.items():
            contenders = {reader: partial(work, reader) for reader in readers}
            for reader, seconds in in_turns(contenders, rounds=rounds, clock=time.process_time).items():
                milliseconds[reader][f"ms: {name}"] = 1000 * statistics.median(seconds) / number
        rows += [{"videos": videos, "file": path.name, "reader": reader, **milliseconds[reader]} for reader in readers]
        for video in opened.values():
            video.close()
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--frames", type=int, default=120, help="frames that are read of a file")
    parser.add_argument("--folder", type=Path, default=FOLDER / "video_loading", help="folder of the videos")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name, make in {"demo": demo_videos, "natural": natural_videos, "larger": larger_videos}.items():
        entries = [Path(entry) for entry in make(args.folder / name).train]
        paths = [path for entry in entries for path in ([entry] if entry.is_file() else sorted(entry.rglob("*.mp4")))]
        rows += rows_of(name, paths[:FILES], args.frames, args.rounds)
    report("video_readers", rows, args.output, packages=("av", "decord", "torchcodec"), rounds=args.rounds)


if __name__ == "__main__":
    main()
