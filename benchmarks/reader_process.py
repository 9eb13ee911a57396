"""The cost of reading clips through a separate process (data.read_timeout), compared with reading them directly.

    python benchmarks/reader_process.py [--size 256] [--frames 17] [--rounds 400]

Both read the same random clips of one file, one clip per round. The time from the end of the process to the first clip
of the next one is reported as well.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from harness import in_turns, make_parser, report, seconds_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from video_files import moving_noise, write_file

from vidtok_plugin.video import ClipDataset, find_sources


def reading(clips: ClipDataset) -> Callable[[], object]:
    """A function that reads the next clip at each call."""
    keys = count()
    return lambda: clips.clip(next(keys))


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=400)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=17)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        frames = moving_noise(120, height=args.size, width=args.size)
        path = write_file(Path(folder) / "a.mp4", frames, keyframe_interval=30)

        def dataset(timeout: float | None) -> ClipDataset:
            return ClipDataset.random(
                find_sources([str(path)]),
                clip_length=args.frames,
                height=args.size,
                width=args.size,
                num_clips=args.rounds + 1,
                read_timeout=timeout,
            )

        direct, process = dataset(None), dataset(60.0)
        seconds = in_turns({"directly": reading(direct), "through a process": reading(process)}, rounds=args.rounds)
        assert process.reader.process is not None
        process.reader.process.close()
        restart = seconds_of(lambda: process.clip(0))
        process.reader.process.close()
    overhead = statistics.median(b - a for a, b in zip(seconds["directly"], seconds["through a process"], strict=True))
    rows = [
        {"reads": name, "clips per second": 1 / statistics.median(taken), "extra ms per clip": 1000 * extra}
        for (name, taken), extra in zip(seconds.items(), (0.0, overhead), strict=True)
    ]
    sizes = {"size": args.size, "frames": args.frames, "rounds": args.rounds}
    report("reader_process", rows, args.output, packages=("av", "decord"), restart_seconds=restart, **sizes)
    print(f"{restart:.2f} s from the end of a process to the first clip of the next")


if __name__ == "__main__":
    main()
