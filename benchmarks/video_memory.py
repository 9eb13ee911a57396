"""Memory while 10,000 random clips are read and files open and close.

    python benchmarks/video_memory.py [--reads 10000] [--rounds 20] [--reader auto|decord|pyav] [--read-timeout SECONDS]

The files differ in container, codec, size and rate. Two are damaged, and other clips replace theirs. Half of the files
stay open, so every other read opens a file and closes another. Memory is measured after each round of reads; the JSON
has its growth over the last nine tenths of them.
"""

import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import make_parser, report, seconds_of
from rich.progress import track

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from video_files import cut_off, moving_noise, overwrite, write_faststart, write_file

from vidtok_plugin.video import ClipDataset, UnreadableVideos, find_sources
from vidtok_plugin.video.reading import ReaderName


def write_files(folder: Path, count: int = 16) -> None:
    """Videos of `count` different kinds, and two damaged ones."""
    kinds = [("mp4", "libx264", 0), ("mkv", "libx264", 2), ("avi", "mpeg4", 0), ("mpg", "mpeg1video", 0)]
    for number in range(count):
        ending, codec, b_frames = kinds[number % len(kinds)]
        height, width = 64 + 16 * (number % 3), 64 + 16 * (number % 5)
        frames = moving_noise(60, height=height, width=width, seed=number)
        write_file(
            folder / f"{number:02}.{ending}", frames, codec=codec, b_frames=b_frames, fps=(24, 25, 30)[number % 3]
        )
    overwrite(write_faststart(folder / "damaged.mp4", moving_noise(60)), 0.5, 0.6)
    cut_off(write_faststart(folder / "cut.mp4", moving_noise(60)), 0.5)


def random_clips(folder: Path, *, reader: ReaderName = "auto", read_timeout: float | None = None) -> ClipDataset:
    return ClipDataset.random(
        find_sources([str(folder)]),
        clip_length=9,
        height=64,
        width=64,
        fps=12,
        crop="random",
        horizontal_flip=True,
        num_clips=1_000_000,
        open_videos=8,
        reader=reader,
        read_timeout=read_timeout,
        unreadable=UnreadableVideos(0.2),
    )


def resident_mib(process: str = "self") -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def memory_over(clips: ClipDataset, reads: int, *, every: int) -> Iterator[tuple[int, float]]:
    """Memory in MiB, including the reader process, after 0, `every`, 2 * `every`, ... reads of random clips."""
    process = clips.reader.process
    for index in range(reads + 1):
        if index % every == 0:
            gc.collect()
            child = None if process is None else process.pid
            yield index, resident_mib() + (0.0 if child is None else resident_mib(str(child)))
        clips[index]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--reader", choices=("auto", "decord", "pyav"), default="auto")
    parser.add_argument("--read-timeout", type=float)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    every = max(1, args.reads // args.rounds)
    rows: list[dict[str, float]] = []

    def watch(clips: ClipDataset) -> None:
        seen = memory_over(clips, args.reads, every=every)
        for reads, mib in track(seen, "reading", total=args.reads // every + 1):
            rows.append({"reads": reads, "MiB": mib})

    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        clips = random_clips(Path(folder), reader=args.reader, read_timeout=args.read_timeout)
        seconds = seconds_of(lambda: watch(clips))
    report(
        "video_memory",
        rows,
        args.output,
        packages=("av", "decord"),
        reader=args.reader,
        read_timeout=args.read_timeout,
        growth_mib=rows[-1]["MiB"] - rows[len(rows) // 10]["MiB"],  # over the last nine tenths
        clips_per_second=args.reads / seconds,
        unreadable=clips.unreadable.count,
    )


if __name__ == "__main__":
    main()
