"""The figures of docs/scale.md: what a core encodes, and what the one process that plans can keep up with.

    python benchmarks/scale.py [--rounds 3] [--frames 161] [--sizes 64 128 256] [--names 100000] [--files 2000]
        [--shards 200] [--without-ray]

Encoding is timed in seconds of CPU, on one thread, which other load affects little: reading a video, encoding it and
writing its shard. The rest is what happens once per episode or shard in the planning process: finding an episode,
planning it, checking a shard that is there, and handing a shard to an actor of Ray (of one that does nothing).
"""

import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from harness import FOLDER, Row, make_parser, report

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.store import ray_engine
from vidtok_plugin.store.plan import plan_shards
from vidtok_plugin.store.shard_encoder import PlannedShard
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.opening import open_episodes
from vidtok_plugin.video.video_file import VideoFile
from vidtok_plugin.video.writing import write_video

CLIP_FRAMES = 17


class Idle(ray_engine.ShardActor):
    """An actor that does nothing."""

    def start(self, recipe: Any, versions: Any) -> str:
        return "here"

    def write(self, pickled: bytes) -> None:
        pickle.loads(pickled)


def moving_squares(frames: int, size: int) -> np.ndarray:
    """uint8 (t, h, w, 3): squares on a gradient, which compress as recordings do, unlike noise."""
    rows, columns = np.mgrid[:size, :size]
    video = np.stack([rows * 255 // size, columns * 255 // size, (rows + columns) * 127 // size], axis=-1)
    video = np.repeat(video[None].astype(np.uint8), frames, axis=0)
    for frame in range(frames):
        start = frame * size // (2 * frames)
        video[frame, start : start + size // 8, size // 4 : size // 2] = (255, 128, 0)
    return video


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """The fewest seconds of CPU of this process in several rounds."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def encoding(adapter: TokenizerAdapter, folder: Path, frames: int, size: int, rounds: int) -> Row:
    video = folder / f"{size}.mp4"
    write_video(video, moving_squares(frames, size), fps=30)
    stores = iter(range(rounds + 1))

    def run() -> None:
        write_store(adapter, [video], folder / f"store_{size}_{next(stores)}", clip_frames=CLIP_FRAMES)

    run()
    seconds = cpu_seconds(run, rounds)
    clips = (frames - 1) // (CLIP_FRAMES - 1)
    hours = 1e6 * 3600 * 30 / frames * seconds / 3600
    return {
        "what": f"clips of {CLIP_FRAMES} frames of {size}x{size}",
        "a second": clips / seconds,
        "frames a second": frames / seconds,
        "core hours for a million hours": hours,
    }


def finding(folder: Path, files: int, rounds: int) -> list[Row]:
    source = folder / "files"
    source.mkdir()
    write_video(source / "0.mp4", moving_squares(17, 64), fps=30)
    content = (source / "0.mp4").read_bytes()
    for number in range(1, files):
        (source / f"{number}.mp4").write_bytes(content)
    found = cpu_seconds(lambda: open_episodes(source), rounds)
    large = folder / "large.mp4"
    large.write_bytes(bytes(100_000_000))
    per_byte = cpu_seconds(VideoFile.at(large).digest, rounds) / 1e8
    return [
        {"what": "video files found", "a second": files / found},
        {"what": "megabytes compared with what was stored", "a second": 1e-6 / per_byte},
    ]


def planning(folder: Path, names: int) -> Row:
    wanted = [f"part-{number // 1000:05d}/video-{number:09d}.mp4" for number in range(names)]
    seconds = cpu_seconds(lambda: plan_shards(folder / "split", wanted, 32), 1)
    (plan,) = (folder / "split").glob("plan_*/shards.json")
    return {"what": "episodes planned", "a second": names / seconds, "bytes each": plan.stat().st_size / names}


def handing_out(shards: int) -> Row:
    planned = [
        PlannedShard(
            number=number,
            names=tuple(f"video-{number:06d}-{i:02d}.mp4" for i in range(32)),
            sources={f"{i}": VideoFile.at(Path(f"/data/video-{number:06d}-{i:02d}.mp4")) for i in range(32)},
            path=None,
        )
        for number in range(shards)
    ]
    with patch.object(ray_engine, "ShardActor", Idle), ray_engine.cluster(None) as ray:
        crew = ray_engine.Crew(ray, recipe=None, actors=2, memory=1)  # type: ignore[arg-type]
        written = crew.write(planned)
        next(written)  # the actors have started
        start = time.process_time()
        rest = sum(1 for _ in written)
        seconds = time.process_time() - start
    return {"what": "shards handed to Ray", "a second": rest / seconds}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--model", default="vidtok_tiny", help="a preset's name or a tokenizer's folder")
    parser.add_argument("--frames", type=int, default=161, help="of the video that is encoded, 1 + 16 k")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="height and width of its frames")
    parser.add_argument("--names", type=int, default=100_000, help="episodes to plan")
    parser.add_argument("--files", type=int, default=2_000, help="videos to find")
    parser.add_argument("--shards", type=int, default=200, help="shards to hand out")
    parser.add_argument("--without-ray", action="store_true", help="leave out what needs Ray")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    adapter = TokenizerAdapter(VidTok.from_pretrained(args.model))
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        rows = [encoding(adapter, folder, args.frames, size, args.rounds) for size in args.sizes]
        rows += [*finding(folder, args.files, args.rounds), planning(folder, args.names)]
        rows += [] if args.without_ray else [handing_out(args.shards)]
    report("scale", rows, args.output, packages=("av", "ray"), rounds=args.rounds, model=args.model)


if __name__ == "__main__":
    main()
