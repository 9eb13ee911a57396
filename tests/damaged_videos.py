"""Damages videos of many formats by seed and counts what reading them gives: an error, or wrong frames in silence.

    python tests/damaged_videos.py [--each 24] [--seed 0] [--formats mkv_h264 ...] [--reader torchcodec] [--verbose]

Each damaged copy is read whole in a process of its own, which has a timeout. An outcome is one of

- right: the frames of the intact file, all of them and no others;
- error: an UnreadableVideoError of one sentence that names file and remedy;
- silent: other or fewer frames without an error; `noticed` of these while FFmpeg itself logged an error;
- nameless: an error without file or remedy; crash; hang.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import av
import numpy as np

sys.path.append(str(Path(__file__).parent))
from video_files import smooth_motion, write_file

from vidtok_plugin.video.reader_process import ReaderProcess, ReaderStoppedError
from vidtok_plugin.video.reading import ReaderName, read_frames
from vidtok_plugin.video.unreadable import UnreadableVideoError

HANG = 60.0  # seconds
FORMATS = {  # name: suffix, codec, pixels, B-frames
    "mp4_h264": ("mp4", "libx264", "yuv420p", 2),
    "mp4_h265": ("mp4", "libx265", "yuv420p", 2),
    "mkv_h264": ("mkv", "libx264", "yuv420p", 2),
    "mkv_h265": ("mkv", "libx265", "yuv420p", 2),
    "webm_vp8": ("webm", "libvpx", "yuv420p", 0),
    "webm_vp9": ("webm", "libvpx-vp9", "yuv420p", 0),
    "ts_h264": ("ts", "libx264", "yuv420p", 2),
    "avi_mpeg4": ("avi", "mpeg4", "yuv420p", 0),
    "avi_mjpeg": ("avi", "mjpeg", "yuvj420p", 0),
    "mpg_mpeg1": ("mpg", "mpeg1video", "yuv420p", 2),
    "gif": ("gif", "gif", "rgb8", 0),
    "flv_h264": ("flv", "libx264", "yuv420p", 2),
}
KINDS = ("cut", "lost_sector", "noise", "inserted", "removed", "flipped_bit")


@dataclass
class Outcomes:
    """The counts for one format, and what was silent."""

    counts: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)


def make(name: str, folder: Path, frames: np.ndarray) -> Path:
    suffix, codec, pixels, b_frames = FORMATS[name]
    return write_file(folder / f"{name}.{suffix}", frames, codec=codec, pixels=pixels, b_frames=b_frames, fps=25)


def damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A damaged copy of a file's bytes."""
    place = int(rng.integers(len(data) // 10, len(data) - 600))
    if kind == "cut":
        return data[: max(place, len(data) // 4)]
    if kind == "lost_sector":
        place = place // 512 * 512
        return data[:place] + bytes(512) + data[place + 512 :]
    if kind == "noise":
        return data[:place] + rng.bytes(200) + data[place + 200 :]
    if kind == "inserted":
        return data[:place] + rng.bytes(int(rng.integers(1, 300))) + data[place:]
    if kind == "removed":
        return data[:place] + data[place + int(rng.integers(1, 300)) :]
    flipped = data[place] ^ 1 << int(rng.integers(8))
    return data[:place] + bytes([flipped]) + data[place + 1 :]


def damaged_copies(path: Path, each: int, seed: int) -> Iterator[tuple[str, Path]]:
    """The kind and path of `each` damaged copies of a file."""
    data = path.read_bytes()
    for number in range(each):
        kind = KINDS[number % len(KINDS)]
        copy = path.with_name(f"{path.stem}_{number}{path.suffix}")
        copy.write_bytes(damage(data, kind, np.random.default_rng([seed, number, len(path.stem)])))
        yield kind, copy
        copy.unlink()


def noticed(path: Path) -> bool:
    """Whether FFmpeg logs an error while it decodes the file."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logs:
            try:
                with av.open(str(path), metadata_errors="replace") as container:
                    for _ in container.decode(video=0):
                        pass
            except av.FFmpegError:
                return True
        return bool(logs)
    finally:
        av.logging.set_level(None)


def read(path: Path, reader: ReaderName) -> np.ndarray:
    return read_frames(path, reader=reader)


def outcome(process: ReaderProcess, path: Path, intact: np.ndarray) -> tuple[str, str]:
    """The outcome of reading a file by the process's reader, and its details."""
    try:
        frames = process.call("damaged_videos:read", path, process.reader)
    except ReaderStoppedError as error:
        return ("hang" if "longer" in str(error) else "crash"), str(error)
    except UnreadableVideoError as error:
        text = str(error)
        good = str(path) in text and "\n" not in text and any(word in text for word in ("remove", "replace"))
        return ("error" if good else "nameless"), text
    except (OSError, ValueError) as error:
        return "nameless", repr(error)
    except RuntimeError as error:
        return "crash", str(error)
    if frames.shape == intact.shape and (frames == intact).all():
        return "right", ""
    if frames.shape != intact.shape:
        return "silent", f"{len(frames)} frames of {len(intact)}"
    return "silent", f"{(frames != intact).any(axis=(1, 2, 3)).sum()} frames differ"


def try_format(name: str, folder: Path, *, each: int, seed: int, reader: ReaderName = "auto") -> Outcomes:
    found = Outcomes()
    path = make(name, folder, smooth_motion(60, height=64, width=96))
    with ReaderProcess(HANG, reader) as process:
        intact = process.call("damaged_videos:read", path, reader)
        for kind, copy in damaged_copies(path, each, seed):
            what, details = outcome(process, copy, intact)
            found.counts[what] += 1
            if what == "silent":
                seen = noticed(copy)
                found.counts["noticed"] += seen
                found.silent.append(f"{kind}: {details}" + (", FFmpeg logged an error" if seen else ""))
            elif what not in ("right", "error"):
                found.silent.append(f"{kind}: {what}: {details}")
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Outcomes]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=24, help="damaged copies of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--reader", choices=get_args(ReaderName), default="auto")
    parser.add_argument("--verbose", action="store_true", help="list what was silent or without a name")
    args = parser.parse_args(argv)
    columns = ("right", "error", "silent", "noticed", "nameless", "crash", "hang")
    print("format".ljust(12), *(column.rjust(8) for column in columns))
    results: dict[str, Outcomes] = {}
    total: Counter[str] = Counter()
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = try_format(name, Path(folder), each=args.each, seed=args.seed, reader=args.reader)
        total += results[name].counts
        print(name.ljust(12), *(str(results[name].counts[column]).rjust(8) for column in columns), flush=True)
        if args.verbose:
            print(*(f"    {line}" for line in results[name].silent), sep="\n")
    print("all".ljust(12), *(str(total[column]).rjust(8) for column in columns))
    return results


if __name__ == "__main__":
    main()
