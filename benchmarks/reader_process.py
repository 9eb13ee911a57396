"""What it costs to read clips by a process that can be ended (data.read_timeout), against reading them directly.

    python benchmarks/reader_process.py [--size 256] [--frames 17] [--clips 400]

Both read the same random clips of one file, clip by clip in turns, so that other load meets both alike. The time from
ending the process to the first clip of the next is told as well.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from video_files import moving_noise, write_file

from vidtok_plugin.video import ClipDataset, find_sources


def seconds_of(clips: ClipDataset, index: int) -> float:
    start = time.perf_counter()
    clips[index]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--clips", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = moving_noise(120, height=args.size, width=args.size)
        path = write_file(Path(folder) / "a.mp4", frames, keyframe_interval=30)

        def dataset(timeout: float | None) -> ClipDataset:
            return ClipDataset.random(
                find_sources([str(path)]),
                clip_length=args.frames,
                height=args.size,
                width=args.size,
                num_clips=args.clips,
                read_timeout=timeout,
            )

        direct, process = dataset(None), dataset(60.0)
        direct[0], process[0]
        times = [(seconds_of(direct, index), seconds_of(process, index)) for index in range(1, args.clips)]
        assert process.reader.process is not None
        process.reader.process.close()
        start = time.perf_counter()
        process[0]
        restart = time.perf_counter() - start
        process.reader.process.close()
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    more = statistics.median(other - one for one, other in times)
    print(f"directly {1 / medians[0]:.1f} clips a second, by a process {1 / medians[1]:.1f} (of the median clip)")
    print(f"the process takes {1000 * more:.2f} ms more for a clip: {more / medians[0]:+.1%}")
    print(f"{restart:.2f} s from a process's end to the next one's first clip")


if __name__ == "__main__":
    main()
