"""Frames per second of `vidtok-plugin tokenize`: whole commands, from start to exit, which take turns.

    python benchmarks/tokenizing.py [--rounds 3] [--videos FOLDER] [--model vidtok_tiny] [--episodes-per-shard 1]
        [--clip-frames N]

The videos are by default the training episodes of `configs/demo_from_scratch.yaml` (14,000 frames of Atari at 64x64),
recorded in the first run and kept. Contenders: one process with all threads, which returns freed memory to the system,
as it was until both changed; the same with memory kept; one process with one thread, and the same in batches of eight,
which are of one shard; and the processes and threads that the command chooses.

CPU time is that of all processes and threads; other load affects it less than wall time. All contenders must write the
same store, byte for byte. `--threads` are those of all processes together. Memory is returned where GLIBC_TUNABLES
configures malloc, here with a default value.
"""

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import FOLDER, Row, make_parser, ratio, report, seconds_of
from omegaconf import OmegaConf
from rich.progress import track

from vidtok_plugin.video.episodes import find_videos
from vidtok_plugin.video.reading import count_frames
from world_model.recording.record import RecordConfig, record

CONFIGS = Path(__file__).parents[1] / "configs"
COMMAND = Path(sys.executable).with_name("vidtok-plugin")
RETURNED = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Arguments and environment of a command."""

    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # beside OMP_NUM_THREADS, all threads


BEFORE = "one process, all threads, memory returned"
CONTENDERS = {
    BEFORE: Contender(arguments=("--processes", "1"), environment=RETURNED),
    "one process, all threads": Contender(arguments=("--processes", "1")),
    "one process, one thread": Contender(arguments=("--processes", "1"), environment={"OMP_NUM_THREADS": "1"}),
    "one process, one thread, batches of 8": Contender(
        arguments=("--processes", "1", "--batch", "8"), environment={"OMP_NUM_THREADS": "1"}
    ),
    "as chosen": Contender(),
}


def demo_episodes(folder: Path) -> Path:
    recipe: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "demo_from_scratch.yaml").record)
    recipe |= {"output": str(folder), "validation_episodes": 0, "test_episodes": 0, "hold": tuple(recipe["hold"])}
    record(RecordConfig(**recipe))
    return folder / "train"


def run(contender: Contender, videos: Path, arguments: Sequence[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command, and a hash of the store that it writes."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command = [str(COMMAND), "tokenize", str(videos), "--output", folder, *arguments, *contender.arguments]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        environment = {**os.environ, **threads, **contender.environment}
        seconds = seconds_of(
            lambda: subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
        return seconds, cpu, hashlib.sha256(content).hexdigest()


def measure(videos: Path, arguments: Sequence[str], rounds: int) -> list[Row]:
    frames = sum(count_frames(path) for path in find_videos(videos))
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    cpu: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    stores = set()
    for _ in track(range(rounds), "rounds"):
        for name, contender in CONTENDERS.items():
            wall, own, store = run(contender, videos, arguments)
            seconds[name].append(wall)
            cpu[name].append(own)
            stores.add(store)
    assert len(stores) == 1, "the stores differ"
    return [
        {
            "command": name,
            "frames per second": frames / statistics.median(taken),
            "x before": ratio(seconds[BEFORE], taken),
            "CPU ms per frame": 1000 * statistics.median(cpu[name]) / frames,
            "x less CPU time": ratio(cpu[BEFORE], cpu[name]),
        }
        for name, taken in seconds.items()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--videos", type=Path, help="a folder of videos (default: the demo's episodes)")
    parser.add_argument("--model", default="vidtok_tiny", help="a preset's name or a tokenizer's folder")
    parser.add_argument("--episodes-per-shard", type=int, default=1)
    parser.add_argument("--clip-frames", type=int, help="of each clip (default: whole videos)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    FOLDER.mkdir(parents=True, exist_ok=True)
    videos = args.videos or demo_episodes(FOLDER / "tokenizing")
    arguments = ["--model", args.model, "--episodes-per-shard", str(args.episodes_per_shard)]
    if args.clip_frames is not None:
        arguments += ["--clip-frames", str(args.clip_frames)]
    rows = measure(videos, arguments, args.rounds)
    report("tokenizing", rows, args.output, packages=("av",), rounds=args.rounds, model=args.model)


if __name__ == "__main__":
    main()
