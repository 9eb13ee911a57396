"""Clips per second of our loading, compared with bare decord reading the same frames of the same files.

    python benchmarks/video_loading.py [--rounds 5] [--clips 200] [--folder runs/benchmarks/video_loading]

Three kinds of videos: the demo's training episodes (1000 frames of Atari at 64x64, a key frame at least every 16), with
the settings of `configs/tokenizer/demo_from_scratch.yaml` except for the cache, which has its own row; natural videos
of the clips' size (256x256, a key frame at least every 30); and natural videos of 640x272 and 1280x720, center-cropped
to 256x256. They are created in the first run and kept.

Bare decord: an open VideoReader with one thread per file; for each clip `seek(0)`, without which decord may return
wrong frames, and `get_batch(indices).asnumpy()`, uint8 (t, h, w, 3). Larger videos are resized by the reader (width=,
height=: FFmpeg's bicubic, while ours averages areas) and center-cropped. `stopped` adds a `seek(0)` after each clip,
since otherwise decord decodes on in the background, often to the end of the file (see DecordReader.read).

CPU time is that of all threads of this process, which other load affects less; it does not include a reader process.

Ours: uint8 batches as a training loader returns them; `video` includes the conversion to float32. The loaders are those
of training (`VideoDataModule`) with 0, 1 and 2 workers, without prefetched batches; `own cores` is the CPU time of this
process per second. The speedup of two threads computing checksums shows what the cores allow.
"""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import FOLDER, Row, in_turns, make_parser, ratio, report
from omegaconf import OmegaConf
from rich.progress import track

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from natural_clips import natural_clip
from video_files import write_file

from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.training.loading import ResumableLoader
from vidtok_plugin.video import ClipDataset, VideoBatch, VideoDataConfig, VideoDataModule, probe, read_frames
from vidtok_plugin.video.batch import collate_clips
from vidtok_plugin.video.decord_reader import decord_or_none  # after PyAV: loaded before it, decord breaks its encoders
from vidtok_plugin.video.resizing import crop_out
from world_model.recording.record import RecordConfig, record

CONFIGS = Path(__file__).parents[1] / "configs"
CROPS = {"bikes.mp4": ((0, 0), (8, 190), (16, 384)), "bigbuckbunny.mp4": ((200, 300), (400, 900))}  # top and left
WORKERS = (0, 1, 2)
TIMEOUT = 60.0  # seconds, for the reader process

Clips = Sequence[tuple[str, Sequence[int]]]  # file and frame indices


def demo_videos(folder: Path) -> VideoDataConfig:
    """Records the demo's training episodes and returns its settings."""
    recipe: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "demo_from_scratch.yaml").record)
    recipe |= {"output": str(folder), "validation_episodes": 0, "test_episodes": 0, "hold": tuple(recipe["hold"])}
    record(RecordConfig(**recipe))
    overrides = [f"data.train=[{folder}/train]", f"data.validation=[{folder}/train]"]
    return load_config(TokenizerRunConfig, [CONFIGS / "tokenizer" / "demo_from_scratch.yaml"], overrides).data


def natural_videos(folder: Path) -> VideoDataConfig:
    """Crops of natural clips, encoded like files of phones and cameras."""
    for name, places in CROPS.items():
        for top, left in places:
            path = folder / f"{Path(name).stem}_{left}.mp4"
            if not path.exists():
                frames = read_frames(natural_clip(name))[:, top : top + 256, left : left + 256]
                write_file(path, frames, keyframe_interval=30)
    return VideoDataConfig(train=(str(folder),), batch_size=2, clips_per_epoch=100_000)


def larger_videos(_: Path) -> VideoDataConfig:
    paths = tuple(str(natural_clip(name)) for name in CROPS)
    return VideoDataConfig(train=paths, batch_size=2, clips_per_epoch=100_000)


def random_clips(cfg: VideoDataConfig, **changes: Any) -> ClipDataset:
    """The training clips of a config, without a cache unless in `changes`."""
    data = VideoDataModule(replace(cfg, **({"cache_mb": 0} | changes)))
    data.setup("fit")
    assert data.train_clips is not None
    return data.train_clips


def frames_of(clips: ClipDataset, keys: Sequence[int]) -> Clips:
    """The files and frames that our loading reads for these keys."""
    read: list[tuple[str, Sequence[int]]] = []
    for key in keys:
        number, start, _, _ = next(clips._draws(0, key))
        read.append((str(clips.videos[number].path), clips.frames.indices(clips.videos[number], start)))
    return read


def decord_reader(path: str, cfg: VideoDataConfig) -> Any:
    """A reader whose frames are resized to cover the clips' size, like ours."""
    video = probe(path)
    scale = max(cfg.height / video.height, cfg.width / video.width)
    height, width = round(scale * video.height), round(scale * video.width)
    size = {} if (height, width) == (video.height, video.width) else {"height": height, "width": width}
    decord = decord_or_none()
    assert decord is not None
    return decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, **size)


def by_decord(clips: Clips, readers: Mapping[str, Any], cfg: VideoDataConfig, *, stopped: bool) -> None:
    for path, indices in clips:
        readers[path].seek(0)
        crop_out(readers[path].get_batch(indices).asnumpy(), cfg.height, cfg.width)
        if stopped:
            readers[path].seek(0)
    for reader in readers.values():  # stops background decoding, which would slow the next contender
        reader.seek(0)


def batches(clips: ClipDataset, keys: Sequence[int], size: int) -> Iterator[VideoBatch]:
    for first in range(0, len(keys), size):
        yield collate_clips([clips.clip(key) for key in keys[first : first + size]])


def in_one_process(videos: str, cfg: VideoDataConfig, clips: int, rounds: int) -> list[Row]:
    ours = {
        "ours": random_clips(cfg),
        "ours, reader=decord": random_clips(cfg, reader="decord"),
        "ours, reader=pyav": random_clips(cfg, reader="pyav"),
        "ours, reader process": random_clips(cfg, read_timeout=TIMEOUT),
        "ours, cached": random_clips(cfg, cache_mb=max(cfg.cache_mb, 400)),
    }
    rows: list[Row] = []
    keys = range(clips)
    read = frames_of(ours["ours"], keys)
    readers = {path: decord_reader(path, cfg) for path in {path for path, _ in read}}

    def consume(dataset: ClipDataset, video: bool = False) -> None:
        for batch in batches(dataset, keys, cfg.batch_size):
            if video:
                assert batch.video.is_floating_point()

    works: dict[str, Callable[[], object]] = {
        "bare decord": lambda: by_decord(read, readers, cfg, stopped=False),
        "bare decord, stopped": lambda: by_decord(read, readers, cfg, stopped=True),
        "ours, video": lambda: consume(ours["ours"], video=True),
    }
    works |= {name: lambda dataset=dataset: consume(dataset) for name, dataset in ours.items()}  # type: ignore[misc]
    busy: dict[str, list[float]] = {name: [] for name in works}  # CPU seconds, including warm-ups

    def watched(name: str) -> None:
        start = time.process_time()
        works[name]()
        busy[name].append(time.process_time() - start)

    seconds = in_turns({name: partial(watched, name) for name in works}, rounds=rounds)
    for name, taken in seconds.items():
        rows.append(
            {
                "videos": videos,
                "clips by": name,
                "clips per second": clips / statistics.median(taken),
                "CPU ms per clip": 1000 * statistics.median(busy[name][1:]) / clips,
                "x bare": ratio(seconds["bare decord"], taken),
                "x bare, stopped": ratio(seconds["bare decord, stopped"], taken),
            }
        )
    process = ours["ours, reader process"].reader.process
    assert process is not None
    process.close()
    return rows


def by_loaders(videos: str, cfg: VideoDataConfig, clips: int, rounds: int, workers: Sequence[int]) -> list[Row]:
    loaders: dict[tuple[int, float | None], ResumableLoader] = {}
    for number in workers:
        for timeout in (None, TIMEOUT):
            data = VideoDataModule(replace(cfg, cache_mb=0, num_workers=number, read_timeout=timeout))
            data.setup("fit")
            loaders[number, timeout] = data.train_dataloader()
    batches = {key: iter(loader) for key, loader in loaders.items()}
    number_of_batches = max(1, clips // cfg.batch_size)
    seconds: dict[tuple[int, float | None], list[float]] = {key: [] for key in loaders}
    own: dict[tuple[int, float | None], list[float]] = {key: [] for key in loaders}
    for _ in track(range(rounds), f"{videos}, by loaders"):
        for key, coming in batches.items():
            for _ in range(2 * key[0] + 1):  # prefetched during other measurements
                next(coming)
            start, start_of_own = time.perf_counter(), time.process_time()
            for _ in range(number_of_batches):
                next(coming)
            seconds[key].append(time.perf_counter() - start)
            own[key].append((time.process_time() - start_of_own) / seconds[key][-1])
    for loader in loaders.values():
        loader._iterator = None  # ends the workers
    return [
        {
            "videos": videos,
            "clips by": f"loader, {number} workers" + ("" if timeout is None else ", reader processes"),
            "clips per second": number_of_batches * cfg.batch_size / statistics.median(taken),
            "x one worker": ratio(seconds[1, timeout], taken) if (1, timeout) in seconds else None,
            "own cores": statistics.median(own[number, timeout]),
        }
        for (number, timeout), taken in seconds.items()
    ]


def two_threads_to_one(rounds: int) -> float:
    """The speedup of two threads over one for pure computation."""
    data = bytes(2**24)

    def by(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(hashlib.sha256, data) for _ in range(4 * threads)]:
                done.result()

    seconds = in_turns({"one": lambda: by(1), "two": lambda: by(2)}, rounds=rounds)
    return 2 * ratio(seconds["one"], seconds["two"])


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--clips", type=int, default=200, help="clips per turn; a quarter for larger videos")
    parser.add_argument("--folder", type=Path, default=FOLDER / "video_loading", help="folder of the videos")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for name, make in {"demo": demo_videos, "natural": natural_videos, "larger": larger_videos}.items():
        cfg, clips = make(args.folder / name), args.clips // 4 if name == "larger" else args.clips
        rows += in_one_process(name, cfg, clips, args.rounds)
        rows += by_loaders(name, cfg, clips, args.rounds, WORKERS)
    allowed = two_threads_to_one(args.rounds)
    report(
        "video_loading",
        rows,
        args.output,
        packages=("av", "decord", "torchdata"),
        rounds=args.rounds,
        clips=args.clips,
        two_threads_to_one=allowed,
    )
    print(f"two threads compute {allowed:.2f} times as many checksums as one")


if __name__ == "__main__":
    main()
